"""How a planned system is started: its program, its spec's options, its testbed, its deadlines."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from harness.config import Config
from harness.planned import Plan, SystemPlan
from harness.runner import Deadlines, Launch
from harness.scratch import scratch_folder
from harness.systems import SYSTEMS
from harness.weights import WeightSet
from testbed.base import Testbed
from testbed.local import LocalTestbed
from tpi.spec import Request

PROGRAMS: Mapping[str, tuple[str, ...]] = {name: s.program for name, s in SYSTEMS.items()}
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
    options = system.options
    hash_s = plan.forms.get(system.form, 0) / _SLOWEST_HASH_BPS
    return Launch(
        system=system.name,
        program=programs[system.name],
        model_dirs=weights.model_dirs(system),
        requests=(
            Request(WARMUP_ID, plan.warmup_tokens, prompt_ids, warmup=True),
            Request(MEASURED_ID, plan.new_tokens, prompt_ids),
        ),
        max_tokens=plan.max_tokens,
        dtype=getattr(options, "dtype", None) or config.dtype,
        threads=threads_of(config, system),
        time_scale=config.testbed.time_scale,
        options=options.spec(config.dtype),
        deadlines=Deadlines(
            ready_s=_PATIENCE_S + _PATIENCE * cost.start_s + hash_s,
            token_s=_PATIENCE_S + _PATIENCE * max(cost.prefill_s, cost.step_s),
        ),
    )


def threads_of(config: Config, system: SystemPlan) -> int:
    """Threads of each of a system's programs: the devices', unless it has an option of its own."""
    return getattr(system.options, "threads", None) or config.device.threads


@contextmanager
def make_testbed(config: Config, system: SystemPlan) -> Iterator[Testbed]:
    """The testbed of a configuration, with a folder for logs and specs while it lasts.

    The folder is on the disk of the weights: a system that offloads to disk does it there.
    """
    with (
        scratch_folder(Path(config.weights.dir).absolute()) as work_dir,
        LocalTestbed(work_dir, threads=threads_of(config, system)) as testbed,
    ):
        yield testbed
