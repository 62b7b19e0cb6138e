"""How a planned system is started: its program, its spec's options, its testbed, its deadlines."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from harness.config import Config, TpiOptions
from harness.plan import Plan, SystemPlan
from harness.runner import Deadlines, Launch
from harness.weights import WeightSet
from testbed.base import Testbed
from testbed.local import LocalTestbed
from tpi.spec import Request

# What starts each system, after the device's Python; the path of its spec is appended.
PROGRAMS: Mapping[str, tuple[str, ...]] = {
    "tpi": ("-m", "tpi.cli", "node"),
    "transformers": ("-m", "baselines.transformers"),
}
WARMUP_ID, MEASURED_ID = "warmup", "r0"
# A deadline is for what hangs, not for what is slow: far above what was predicted.
_PATIENCE_S, _PATIENCE = 120.0, 5.0
_SLOWEST_HASH_BPS = 50e6


def make_launch(
    plan: Plan,
    system: SystemPlan,
    weights: WeightSet,
    prompt_ids: tuple[int, ...],
    programs: Mapping[str, tuple[str, ...]] = PROGRAMS,
) -> Launch:
    """One start of a system: a warm-up request and the measured one."""
    config, cost = plan.config, system.cost
    is_tpi = isinstance(system.options, TpiOptions)
    hash_s = plan.shards_bytes / _SLOWEST_HASH_BPS
    return Launch(
        system=system.name,
        program=programs[system.name],
        model_dirs=weights.rank_folders(system.world_size) if is_tpi else (weights.hf,),
        requests=(
            Request(WARMUP_ID, plan.warmup_tokens, prompt_ids, warmup=True),
            Request(MEASURED_ID, plan.new_tokens, prompt_ids),
        ),
        max_tokens=plan.max_tokens,
        dtype=config.dtype,
        threads=config.device.threads,
        time_scale=config.testbed.time_scale,
        options=spec_options(system),
        deadlines=Deadlines(
            ready_s=_PATIENCE_S + _PATIENCE * cost.start_s + hash_s,
            token_s=_PATIENCE_S + _PATIENCE * max(cost.prefill_s, cost.step_s),
        ),
    )


def spec_options(system: SystemPlan) -> dict[str, object]:
    """The options that go into the spec; shares do not, the split has used them up."""
    return {k: v for k, v in asdict(system.options).items() if k != "shares"}


@contextmanager
def make_testbed(config: Config) -> Iterator[Testbed]:
    """The testbed of a configuration, with a folder for its logs and specs while it lasts."""
    with (
        tempfile.TemporaryDirectory(prefix="tpi-run-") as work_dir,
        LocalTestbed(Path(work_dir), threads=config.device.threads) as testbed,
    ):
        yield testbed
