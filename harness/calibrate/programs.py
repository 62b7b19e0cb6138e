"""The costs of real programs beside products, messages and disk, on models of a few kilobytes.

Each system is started on two models that differ only in their number of layers: what grows with
it is the cost of a layer, the rest is the cost of a step. Two devices beside one show the cost of a
sum.
"""

import itertools
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from baselines.registry import find_system
from harness.calibrate.sizes import Sizes, timed_rounds
from harness.run.judge import judge
from harness.run.launch import MEASURED_ID, PROGRAMS, requests_for
from harness.run.runner import Launch, run_repeat
from results.records.measure import measure
from results.records.schema import RepeatMetrics
from testbed.local.local import LocalTestbed
from tpi.errors import ResourceError
from tpi.model_config import ModelConfig, RopeScaling
from tpi.weights.hf_folder import write_hf_folder
from tpi.weights.shard import make_shard_plan
from tpi.weights.split import split
from tpi.weights.synthetic import SyntheticSource

_DTYPE = "float32"
_PROMPT = (1, 2, 3, 4)
_WARMUP_TOKENS = 2
_TENSORS = 9  # of a layer: seven matrices, two norms
_BLOCKS = _SUMS = 2  # of a layer
# (system, devices)
CASES = (("tpi-resident", 1), ("tpi-resident", 2), ("transformers", 1), ("accelerate", 1))
Case = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Served:
    """The figures of one case; steps by number of layers."""

    ready_s: float
    step_s: dict[int, float]
    rss_bytes: int
    anon_bytes: int


def measure_programs(folder: Path, sizes: Sizes) -> dict[str, Any]:
    """Serve every case on both models, in turns; raises ResourceError if a program fails."""
    found: dict[tuple[Case, int], list[RepeatMetrics]] = {}
    with tempfile.TemporaryDirectory(dir=folder, prefix=".calibrate-") as name:
        work = Path(name).absolute()
        for layers in sizes.layers:
            _write_weights(work, layers)
        for _ in timed_rounds(sizes.program_rounds, sizes.part_s):
            for case, layers in itertools.product(CASES, sizes.layers):
                served = _serve(work, case, layers, sizes.new_tokens)
                found.setdefault((case, layers), []).append(served)
    few = min(sizes.layers)
    return costs_from(
        {
            case: Served(
                ready_s=median(metrics.load_s for metrics in found[case, few]),
                step_s={n: median(map(_gap_s, found[case, n])) for n in sizes.layers},
                rss_bytes=_largest(m.peak_memory.rss_hwm for m in found[case, few]),
                anon_bytes=_largest(m.peak_memory.anon_peak for m in found[case, few]),
            )
            for case in CASES
        }
    )


def costs_from(served: dict[Case, Served]) -> dict[str, Any]:
    """Fields of `Calibration` from the figures of the cases; a negative cost becomes 0.

    `sum_s` beside them is a sum with its two messages.
    """
    alone, pair, library, hooked = (served[case] for case in CASES)
    step_s, layer_s = _line(alone.step_s)
    library_step_s, library_layer_s = _line(library.step_s)
    return {
        "start_s": alone.ready_s,
        "step_s": step_s,
        "block_s": layer_s / _BLOCKS,
        "sum_s": max(0.0, _line(pair.step_s)[1] - layer_s) / _SUMS,
        "library_start_s": library.ready_s,
        "library_step_s": library_step_s,
        "library_layer_s": library_layer_s,
        "library_bytes": library.rss_bytes,
        "library_anon_bytes": library.anon_bytes,
        "hook_s": max(0.0, _line(hooked.step_s)[1] - library_layer_s) / _TENSORS,
    }


def _line(step_s: dict[int, float]) -> tuple[float, float]:
    """Seconds of a step beside its layers, and of a layer."""
    (few, few_s), (many, many_s) = sorted(step_s.items())
    layer_s = max(0.0, many_s - few_s) / (many - few)
    return max(0.0, few_s - few * layer_s), layer_s


def _gap_s(metrics: RepeatMetrics) -> float:
    """The lower quartile: on a busy machine most gaps contain pauses of the host."""
    gaps = sorted(metrics.gaps_s)
    return gaps[len(gaps) // 4]


def _largest(peaks: Iterable[tuple[int | None, ...]]) -> int:
    return max(filter(None, itertools.chain.from_iterable(peaks)), default=0)


def _model(layers: int) -> ModelConfig:
    return ModelConfig(
        architecture="llama", num_layers=layers, hidden_size=64, num_heads=2, num_kv_heads=2,
        head_size=32, ffn_size=64, vocab_size=256, max_positions=256, rms_eps=1e-5,
        rope_theta=10000.0, rope=RopeScaling(), dtype=_DTYPE,
    )  # fmt: skip


def _write_weights(work: Path, layers: int) -> None:
    source = SyntheticSource(_model(layers))
    for devices in sorted({devices for _, devices in CASES}):
        plan = make_shard_plan(source.config, devices)
        split(source, plan, work / f"shards-{layers}-{devices}", dtype=_DTYPE)
    write_hf_folder(source, work / f"hf-{layers}")


def _serve(work: Path, case: Case, layers: int, new_tokens: int) -> RepeatMetrics:
    system, devices = case
    shards, hf = work / f"shards-{layers}-{devices}", work / f"hf-{layers}"
    found = find_system(system)
    options = found.options()
    has_shards = found.weight_format(_model(layers), devices, _DTYPE, options).kind == "shards"
    launch = Launch(
        system=system,
        program=PROGRAMS.get(system, found.program),
        model_dirs=tuple(shards / f"rank-{rank}" if has_shards else hf for rank in range(devices)),
        requests=requests_for(_PROMPT, _WARMUP_TOKENS, new_tokens),
        compute=options.compute(_DTYPE, len(_PROMPT) + new_tokens),
        options=options.spec(),
    )
    with LocalTestbed(work / "devices", threads=1) as testbed:
        outcome = run_repeat(launch, testbed)
    repeat = judge(outcome, 0, MEASURED_ID, new_tokens)
    if repeat.status != "ok":
        raise ResourceError(f"calibration: {system}: {repeat.status}: {repeat.reason}")
    return measure(repeat)
