"""Stands in for a reference that does not fit: the same shape, cut to two layers, checked first.

TPI-LLM runs it on the same testbed with the same devices and options, and its tokens must match
Transformers'. The verdict is kept under a hash of everything that decides it, the program's source
included; the weights made for it are removed again.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

from harness import weights as weight_sets
from harness.identity import decisive, reference_digest
from harness.launching import MEASURED_ID, make_launch, make_testbed
from harness.live import Live
from harness.plan import Plan, SystemPlan, two_layer_plan
from harness.reference import Reference
from harness.runner import run_repeat
from harness.verdict import judge
from harness.weights import WeightSet
from results.schema import Check
from tpi.files import write_atomic

_WHAT = "the same shape with two layers"


def check_two_layers(
    plan: Plan,
    prompt_ids: tuple[int, ...],
    environment: Mapping[str, object],
    live: Live,
    programs: Mapping[str, tuple[str, ...]],
    *,
    threads: int,
) -> Check:
    """Run the check, or look up what came out of the same one before.

    `passed` is None where there was no verdict; that is not kept.

    Raises:
        TpiError: Weights or devices could not be made.
    """
    small = two_layer_plan(plan)
    system = next(s for s in small.systems if s.name == "tpi")
    weights = weight_sets.locate(small)
    decides = {
        **decisive(small, system, weights, prompt_ids, environment),
        "reference": reference_digest(),
    }
    digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]
    path = Path(plan.config.results_dir) / "references" / f"two-layers-{digest}.json"
    if path.exists():
        return Check(**json.loads(path.read_text(encoding="utf-8")))
    check = _run(small, system, weights, prompt_ids, live, programs, threads)
    if check.passed is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(asdict(check)).encode())
    return check


def _run(
    small: Plan,
    system: SystemPlan,
    weights: WeightSet,
    prompt_ids: tuple[int, ...],
    live: Live,
    programs: Mapping[str, tuple[str, ...]],
    threads: int,
) -> Check:
    kind = "two_layer_bounded" if small.check == "bounded" else "two_layer"
    is_ours = not weights.base.exists()
    try:
        weight_sets.obtain(small, weights, live)
        launch = make_launch(small, system, weights, prompt_ids, programs)
        title = "check: two layers"
        with make_testbed(small.config) as testbed, live.repeat(title, launch) as watch:
            outcome = run_repeat(launch, testbed, watch)
        repeat = judge(outcome, 0, MEASURED_ID, small.new_tokens)
        if repeat.status != "ok":
            detail = f"{_WHAT} {repeat.status}: {repeat.reason}"
            return Check(kind, passed=None, detail=detail)
        reference = Reference(small, weights, prompt_ids, live, threads=threads)
        check = reference.check(system.name, repeat.tokens)
    finally:
        if is_ours:
            shutil.rmtree(weights.base, ignore_errors=True)
    text = f"{_WHAT}: {check.detail}"
    if check.passed:
        how = "exactly" if check.kind == "exact" else f"within the bound ({check.detail})"
        text = f"{_WHAT} gives Transformers' tokens {how}"
    return replace(check, kind=kind, detail=text)
