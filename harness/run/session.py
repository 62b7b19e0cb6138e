"""One configuration from its plan to its records.

`prepare` refuses what cannot be done, before anything has started; `run` does it; `show` prints the
table of what was measured, also of a run that ended in the middle.
"""

import contextlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.config.compose import Composed
from harness.plan.availability import split_available
from harness.plan.describe import describe
from harness.plan.plan import calibrated_host, calibration_of, make_plan
from harness.plan.prompt import prompt_ids
from harness.plan.types import Plan
from harness.progress.live import Live
from harness.run.annotate import disk_share
from harness.run.experiment import Experiment
from harness.run.failure import failure_of
from harness.run.jobs import Executor
from harness.run.simulation import Simulation
from results.records.comparison_table import note_lines, rich_table
from results.records.schema import RunRecord
from testbed.base import DeviceError
from testbed.docker.watchdog import watchdog
from testbed.host.hostlock import host_lock
from testbed.host.label import RunLabel
from testbed.host.rates import probe_host
from tpi.errors import TpiError
from tpi.model_config import load_config, load_preset

WIDTH = 120  # where there is no terminal to ask


class Output(Console):
    """An output stream; a reader that is gone is an error, not the end of the process."""

    def on_broken_pipe(self) -> None:
        """Leave it to the caller."""
        raise BrokenPipeError


def console(*, quiet: bool = False, stderr: bool = False) -> Output:
    """An output as wide as the terminal."""
    width = None if sys.stdout.isatty() else WIDTH
    return Output(highlight=False, width=width, quiet=quiet, stderr=stderr)


def prepare(composed: Composed) -> Plan:
    """Plan one configuration; only a probe of the disk is started or written.

    Raises:
        ConfigError: It cannot be done as it was asked for.
    """
    is_all, path = composed.all_systems, composed.config.model.path
    name = composed.config.model.name
    model = load_preset(name) if path is None else load_config(Path(path))
    config, unavailable = split_available(composed.config, model, is_all=is_all)
    prompt, calibration = prompt_ids(config, model), calibration_of(config)
    if calibration is None:
        is_emulated = config.testbed.backend == "docker"
        host = probe_host(Path(config.weights.dir), memory_rate=is_emulated)
    else:
        host = calibrated_host(calibration)
    return make_plan(
        config, model, prompt, host, calibration, unavailable=unavailable, is_all=is_all
    )


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of one configuration.

    Attributes:
        records: One per system; for systems that cannot run, only the reason.
        status: The exit status.
        error: The error that ended it early.
    """

    records: tuple[RunRecord, ...]
    status: int
    error: BaseException | None = None


def run(plan: Plan, console: Console) -> Outcome:
    """Print what will be done, and do it.

    Raises:
        TpiError, OSError: Before anything has started.
    """
    live = Live(Output(stderr=True, highlight=False))
    if plan.is_simulated:
        return _execute(plan, Simulation(plan, live), console)
    with contextlib.ExitStack() as stack:
        lock = host_lock(allow_concurrent=plan.config.allow_concurrent)
        contention = stack.enter_context(lock)
        if plan.is_emulated:
            stack.enter_context(watchdog(RunLabel.mine("all")))
        experiment = Experiment(plan, live, contention=contention)
        if plan.is_emulated and experiment.pending:
            require_docker(plan)
        return _execute(plan, experiment, console)


def _execute(plan: Plan, executor: Executor, console: Console) -> Outcome:
    grid = Table.grid(padding=(0, 2))
    for heading, text in describe(plan, executor.to_write, executor.pending):
        grid.add_row(heading, Text(text))  # as Text: brackets are no markup
    console.print(grid, "")
    error: BaseException | None = None
    try:
        executor.run()
    except (KeyboardInterrupt, TpiError, OSError) as exc:
        error = exc
    status = executor.exit_status if error is None else failure_of(error)[0]
    # Rows of the table only: what never ran has no record.
    rows = (RunRecord("", n, "unavailable", why) for n, why in plan.unavailable.items())
    return Outcome((*executor.records, *rows), status, error)


def require_docker(plan: Plan) -> None:
    """Refuse, before weights are made, what would fail when devices are made.

    Raises:
        ConfigError: Devices need swap, which the host has not and was not asked to make.
        DeviceError: No daemon, no image, or no means for links.
    """
    from testbed.limits.swap import require_swap

    has_links = any(system.world_size > 1 for system in plan.runnable)
    require_emulation(plan.config.link.backend if has_links else None)
    need = max((system.swap_need for system in plan.runnable), default=0)
    require_swap(need, Path(plan.config.weights.dir), may_make=plan.config.testbed.make_swap)


def require_emulation(link_backend: str | None) -> None:
    """Refuse to go on if this host cannot emulate.

    Raises:
        DeviceError: No daemon, no image, or no means for links, where they are needed.
    """
    from testbed.docker.daemon import Daemon  # Docker's SDK takes a quarter of a second
    from testbed.image.build import image_problem
    from testbed.links.network import require_links

    with contextlib.closing(Daemon()) as daemon:
        problem = image_problem(daemon.client)
    if problem is not None:
        raise DeviceError(f"docker: {problem}")
    if link_backend is not None:
        require_links(link_backend)


def show(records: Sequence[RunRecord], results_dir: Path, console: Console) -> None:
    """Print the table, what it leaves out, and where the records lie."""
    shares = [disk_share(record) for record in records]
    rows = [
        replace(record, notes=(*record.notes, share)) if share else record
        for record, share in zip(records, shares, strict=True)
    ]
    table = rich_table(rows)
    table.caption = None  # it would be wrapped to the table's width
    # Cells are never cut short: a terminal that is too narrow wraps the lines itself.
    wide = Output(highlight=False, file=console.file, width=max(console.width, WIDTH))
    wide.print("", table, "")
    kept = [results_dir / record.run_id for record in records if record.run_id]
    folders = [f"record: {folder}" for folder in kept if folder.is_dir()]
    for line in (*note_lines(rows), *folders):
        console.print(line, markup=False, soft_wrap=True)
