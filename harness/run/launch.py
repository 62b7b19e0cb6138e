"""How a planned system is started: its program, its spec's options, its testbed, its deadlines."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from harness.plan.types import Plan, SystemPlan
from harness.run.emulation import drop_page_cache, emulated_testbed, private_copies
from harness.run.runner import Launch
from harness.run.scratch import scratch_folder
from harness.run.weights import WeightSet
from testbed.base import Testbed
from testbed.local.local import LocalTestbed
from tpi.errors import ResourceError, map_errors
from tpi.program.program_session import Deadlines
from tpi.program.spec import Request
from tpi.weights.blockfile import open_shard_folder

# Programs that replace those of systems, by name.
PROGRAMS: dict[str, tuple[str, ...]] = {}
WARMUP_ID, MEASURED_ID = "warmup", "r0"
# A deadline is for programs that hang, not for slow ones: it is far above the prediction.
_PATIENCE_S, _PATIENCE = 120.0, 5.0
_SLOWEST_HASH_BPS = 50e6


def requests_for(
    prompt: tuple[int, ...], warmup_tokens: int, new_tokens: int
) -> tuple[Request, Request]:
    """The warm-up request and the measured one."""
    warmup = Request(WARMUP_ID, warmup_tokens, prompt, warmup=True)
    return warmup, Request(MEASURED_ID, new_tokens, prompt)


def make_launch(
    plan: Plan,
    system: SystemPlan,
    programs: Mapping[str, tuple[str, ...]],
    model_dirs: tuple[Path, ...],
) -> Launch:
    """One start of a system: a warm-up request and the measured one."""
    config, cost, options = plan.config, system.cost, system.options
    hash_s = plan.forms.get(system.form, 0) / _SLOWEST_HASH_BPS
    return Launch(
        system=system.name,
        program=programs.get(system.name, system.system.program),
        model_dirs=model_dirs,
        requests=requests_for(plan.prompt_ids, plan.warmup_tokens, plan.new_tokens),
        compute=options.compute(config.dtype, plan.max_tokens),
        threads=system.threads,
        time_scale=config.testbed.time_scale * plan.dilation.factor,
        keep_spans=config.trace,
        # Nothing outside the run's own namespaces can reach the emulated network.
        trust_network=plan.is_emulated and system.system.distributed,
        options=options.spec(),
        # Predictions are of this host's time, and the launch multiplies by its time_scale.
        deadlines=Deadlines(
            ready_s=_PATIENCE_S + (_PATIENCE * cost.start_s + hash_s) / plan.dilation.factor,
            token_s=_PATIENCE_S
            + _PATIENCE * max(cost.prefill_s, cost.step_s) / plan.dilation.factor,
        ),
    )


@contextmanager
def make_testbed(
    plan: Plan, system: SystemPlan, weights: WeightSet
) -> Iterator[tuple[Testbed, tuple[Path, ...]]]:
    """The testbed of a plan while it lasts, and the model folder of each rank.

    Logs, specs and offloaded weights lie on the disk of the weights. For containers the page cache
    is emptied of the weights, and a system that reads through it gets a copy per device.
    """
    model_dirs = weights.model_dirs(system)
    with scratch_folder(Path(plan.config.weights.dir).absolute()) as work_dir, ExitStack() as stack:
        if not plan.is_emulated:
            threads = max(system.threads)
            yield stack.enter_context(LocalTestbed(work_dir, threads=threads)), model_dirs
            return
        with map_errors({OSError: ResourceError}, f"copies for {system.name}"):
            if system.is_copied:
                model_dirs = private_copies(model_dirs[0], system.world_size, work_dir)
            drop_page_cache(model_dirs)
        if system.form.shard_plan is not None:
            for folder in dict.fromkeys(model_dirs):
                open_shard_folder(folder)  # hashed here once, and not at every device's slow disk
        testbed = stack.enter_context(emulated_testbed(plan, system, model_dirs, work_dir))
        yield testbed, model_dirs
