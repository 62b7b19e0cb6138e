"""Replaces a reference that does not fit: the same shape, cut to two layers, is checked first.

Each system runs it on the same testbed with the same devices and options, and its tokens must
match Transformers'. Verdicts are kept under a hash of everything that decides them, the program's
source included; the weights made for them are removed again.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

from msgspec import structs, to_builtins

from harness.plan.plan import reduced_plan
from harness.plan.types import SystemPlan
from harness.run import weights as weight_sets
from harness.run.reference import Reference
from harness.run.repeats import Repeats
from harness.run.run_key import decisive, reference_digest
from results.records.hashing import digest_of
from results.records.schema import Check, RecordError
from tpi.decode import decode_file
from tpi.files import write_atomic

_MAX_BYTES = 1 << 20
_WHAT = "the same shape with two layers"


class ReducedModelCheck:
    """The small model of a plan, and the checks on it of the systems in `names`.

    A context manager: weights that were made for it go when it is left.
    """

    def __init__(self, full: Repeats, names: Sequence[str]) -> None:
        small = reduced_plan(full.plan)
        self._plan = replace(small, systems=tuple(s for s in small.systems if s.name in names))
        self._weights = weight_sets.locate(self._plan)
        self._repeats = replace(full, plan=self._plan, weights=self._weights)
        self._is_ours = not self._weights.base.exists()
        self._reference = Reference(self._plan, self._weights, full.live)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._is_ours:
            shutil.rmtree(self._weights.base, ignore_errors=True)

    def check(self, name: str) -> Check:
        """Run one system's check, or look up its outcome; raises TpiError without devices.

        `passed` is None where there was no verdict; that is not kept.
        """
        system = next(s for s in self._plan.systems if s.name == name)
        path = self._path(system)
        if path.exists():
            return decode_file(path, Check, _MAX_BYTES, RecordError)
        check = self._run(system)
        if check.passed is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, json.dumps(to_builtins(check)).encode())
        return check

    def _path(self, system: SystemPlan) -> Path:
        decides = decisive(self._plan, system, self._weights)
        digest = digest_of({**decides, "reference": reference_digest()})[:16]
        return self._reference.folder / f"two-layers-{digest}.json"

    def _run(self, system: SystemPlan) -> Check:
        kind = "two_layer_bounded" if system.check == "bounded" else "two_layer"
        weight_sets.obtain(self._plan, self._weights, self._repeats.live)
        repeat = self._repeats.run(system, f"check of {system.name}: two layers")
        if repeat.status != "ok":
            detail = f"{_WHAT} {repeat.status}: {repeat.reason}"
            return Check(kind, passed=None, detail=detail)
        check = self._reference.check(system, repeat.tokens)
        text = f"{_WHAT}: {check.detail}"
        if check.passed:
            how = "exactly" if check.kind == "exact" else f"within the bound ({check.detail})"
            text = f"{_WHAT} gives Transformers' tokens {how}"
        return structs.replace(check, kind=kind, detail=text)
