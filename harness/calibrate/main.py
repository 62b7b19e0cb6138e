"""Measure this machine for the simulator: `lab calibrate` (`make calibrate`).

Four parts, about two minutes together: kernels, messages, the disk, and real programs. Every figure
is the median of interleaved repeats. Nothing else should run meanwhile.
"""

import argparse
import contextlib
import functools
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from rich.console import Console

from harness.calibrate.disk import measure_disk
from harness.calibrate.kernels import casts, measure_kernels, tables
from harness.calibrate.messages import measure_messages
from harness.calibrate.programs import measure_programs
from harness.calibrate.sizes import Sizes
from harness.calibrate.table import calibration_table
from harness.progress.live import Live
from harness.run.failure import run_command
from harness.run.session import WIDTH
from testbed.base import DeviceError
from testbed.host.environment import host_environment
from testbed.host.hostlock import host_lock
from testbed.host.rates import core_read_gbps
from testbed.sim.calibration import Calibration, load_calibration, save_calibration
from tpi.command_line import Parser
from tpi.errors import EXIT_OK, ConfigError, ResourceError, map_errors

DEFAULT_DIR = Path("weights")
FILE_NAME = "calibration.json"
_QUIET_LOAD = 0.5  # runnable processes a core, mean of the last minute


def calibrate(folder: Path, sizes: Sizes, live: Live) -> Calibration:
    """Measure everything; files are written to `folder`, whose disk is measured, and removed.

    Raises:
        ResourceError: A program ended early, or the disk is full.
    """
    facts = host_environment()
    cores = facts.usable_cores
    with live.waiting("memory"):
        core_gbps = core_read_gbps()
    with live.waiting(f"computing, on {cores} cores at once"):
        kernels = measure_kernels(folder, sizes, cores)
    with live.waiting("messages over loopback"):
        messages = measure_messages(sizes)
    with live.waiting(f"the disk of {folder}"):
        disk, note = measure_disk(folder, sizes)
    with live.waiting("programs on small models"):
        costs = measure_programs(folder, sizes) | messages | disk
    host = f"{facts.cpu_model}, {cores} cores at once, {date.today().isoformat()}"
    sum_s, notes = costs.pop("sum_s"), (host, busy_words(facts.load_1m, cores), note)
    return Calibration(
        host="; ".join(filter(None, notes)),
        cpu_model=facts.cpu_model or "",
        cores=cores,
        core_read_bps=1e9 * core_gbps,
        products=tables(kernels, "products"),
        linear=tables(kernels, "linear"),
        attend=tables(kernels, "attend"),
        cast_bps=casts(kernels),
        element_s=kernels["element"],
        sum_bps=kernels["sum"],
        page_in_bps=kernels["page_in"],
        sum_call_s=max(0.0, sum_s - 2 * (messages["send_s"] + messages["recv_s"])),
        **costs,
    )


def busy_words(load: object, cores: int) -> str:
    """A note that the machine was busy before; empty if it was not."""
    if not isinstance(load, float) or load <= _QUIET_LOAD * cores:
        return ""
    return f"busy with other work (load {load:.3g}), so it looks slower than it is"


def main(argv: Sequence[str] | None = None, sizes: Sizes | None = None) -> int:
    """Run the command line; returns the exit status."""
    arguments = _parser().parse_args(argv)
    out = Path(arguments.out or arguments.dir / FILE_NAME)
    run = functools.partial(_run, arguments.dir, out, sizes or Sizes())
    return run_command("calibrate", run, "interrupted; nothing was written")


def _run(folder: Path, out: Path, sizes: Sizes) -> int:
    console = Console(highlight=False)
    with map_errors({OSError: ConfigError}, f"--dir {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
    before, of = _before(out)
    start_ns = time.monotonic_ns()
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(host_lock(allow_concurrent=False))
        except DeviceError as exc:
            # The advice to run beside it would spoil every figure here.
            raise DeviceError(str(exc).partition(", or give ")[0]) from exc
        found = calibrate(folder, sizes, Live(Console(stderr=True, highlight=False)))
    # A terminal that is too narrow wraps the lines itself; nothing is cut short.
    wide = Console(highlight=False, width=max(console.width, WIDTH))
    wide.print(calibration_table(found, before))
    with map_errors({OSError: ResourceError}, f"cannot write {out}"):
        save_calibration(found, out)
    took_s = (time.monotonic_ns() - start_ns) / 1e9
    for line in (
        f"\nmeasured: {found.host}, in {took_s:.0f} s",
        f"before: {of}",
        f"written: {out}; python run.py testbed=sim testbed.calibration={out}",
    ):
        console.print(line, markup=False, soft_wrap=True)
    return EXIT_OK


def _before(out: Path) -> tuple[Calibration | None, str]:
    """The calibration to compare with, and its name: the file's, else the reference."""
    for path in (out if out.exists() else None, None):
        try:
            known = load_calibration(path)
        except (ConfigError, OSError):  # a file of an older program is no reason to stop
            continue
        return known, f"{path or 'the reference'} ({known.host})"
    return None, "nothing"


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="lab calibrate", description="Measure this machine for the simulator.")
    parser.add_argument("--out", type=Path, help=f"file to write (default: DIR/{FILE_NAME})")
    parser.add_argument(
        "--dir", type=Path, default=DEFAULT_DIR,
        help="folder on the disk to measure, that of the weights (default: %(default)s)",
    )  # fmt: skip
    return parser
