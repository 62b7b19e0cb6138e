"""Run what the paper's tables and figures need, and render them: `lab paper`.

    lab paper --scale smoke                  # as make paper
    lab paper --scale small --only table1    # as make table1 SCALE=small
    lab paper --scale full --dry-run

What has a record is not run again, so it can be stopped (Ctrl-C, SIGTERM) and the same command goes
on. One run that fails does not keep the others from running. Records and `index.json` lie in
`results/paper-runs/SCALE`, with what single runs print in `log.txt` and what is rendered in
`rendered/`; one driver at a time works there. Read `_run_all` first; `harness/paper/plan.py` has
what to run, `harness/paper/work.py` how, `harness/paper/driver.py` goes through it.
"""

import argparse
import functools
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from harness.paper.driver import LOG_FILE, Driver, make_command
from harness.paper.index_writer import PaperIndex, folder_lock
from harness.paper.plan import PaperPlan, exhibits_of, read_plan
from harness.paper.work import Work, works_of
from harness.run.failure import EXIT_BROKEN_PIPE
from harness.run.session import WIDTH, Output
from harness.run.signals import GracefulShutdown, write_nowhere
from results.paper.cell import ALL_EXHIBITS, SCALES
from tpi.command_line import Parser
from tpi.errors import EXIT_INTERRUPTED, ResourceError, TpiError
from tpi.units import counted

RUNS_DIR = Path("results/paper-runs")
_RENDERED = "rendered"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    arguments = _parser().parse_args(argv)
    with GracefulShutdown() as signals:
        try:
            return _run(arguments)
        except BrokenPipeError:
            write_nowhere(sys.stdout.fileno())
            status = EXIT_BROKEN_PIPE
        except (TpiError, OSError) as exc:
            sys.stderr.write(f"paper: {' '.join(str(exc).split())}\n")
            status = exc.exit_status if isinstance(exc, TpiError) else ResourceError.exit_status
        except KeyboardInterrupt:
            draw = _render_command(arguments)
            sys.stderr.write(
                "paper: interrupted; the same command goes on where it stopped, and what there is"
                f" so far is drawn by: {draw}\n"
            )
            status = EXIT_INTERRUPTED
    return EXIT_INTERRUPTED if signals.seen else status


def _run(arguments: argparse.Namespace) -> int:
    console = Output(highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    plan = read_plan(arguments.scale)
    wanted = {e for word in arguments.only for e in exhibits_of(word)} or set(ALL_EXHIBITS)
    folder = _folder(arguments)
    if arguments.dry_run:
        works, _ = _works(plan, folder, wanted, retry=arguments.retry)
        index = PaperIndex(folder, plan.scale, plan.entries)
        return Driver(works, index, console, console).dry_run()
    with folder_lock(folder):
        status = _run_all(arguments, plan, wanted, console)
        paths = _render(folder, [e for e in ALL_EXHIBITS if e in wanted])
    lines = [
        f"{counted(len(paths), 'file')} in {folder / _RENDERED}",
        f"next: {_report_command(arguments)}",
    ]
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
    return status


def _run_all(
    arguments: argparse.Namespace, plan: PaperPlan, wanted: set[str], console: Console
) -> int:
    folder = _folder(arguments)
    works, others = _works(plan, folder, wanted, retry=arguments.retry)
    index = PaperIndex(folder, plan.scale, plan.entries)
    with (folder / LOG_FILE).open("a", encoding="utf-8") as file:
        log = Output(file=file, highlight=False, width=WIDTH)
        again = functools.partial(_again_command, arguments)
        return Driver(works, index, console, log, others=others, again=again).run()


def _works(
    plan: PaperPlan, folder: Path, wanted: set[str], *, retry: bool
) -> tuple[list[Work], list[Work]]:
    """What is to be run, and the rest of the plan."""
    works = works_of(plan.entries, plan.studies, folder, retry=retry)
    rest = [work for work in works if not work.exhibits & wanted]
    return [work for work in works if work.exhibits & wanted], rest


def _folder(arguments: argparse.Namespace) -> Path:
    return Path(arguments.dir or RUNS_DIR / arguments.scale)


def _again_command(arguments: argparse.Namespace, exhibit: str) -> str:
    """What runs an exhibit again with what failed."""
    exhibit, scale = exhibit.rstrip("abc"), arguments.scale
    if arguments.dir is None:
        return make_command(exhibit, scale, "RETRY=1")
    words = ["lab", "paper", "--scale", scale, "--only", exhibit]
    return shlex.join([*words, "--dir", str(arguments.dir), "--retry"])


def _report_command(arguments: argparse.Namespace) -> str:
    if arguments.dir is None:
        return make_command("report", arguments.scale)
    return shlex.join(["lab", "report", str(arguments.dir)])


def _render_command(arguments: argparse.Namespace) -> str:
    if arguments.dir is None:
        return make_command("render", arguments.scale)
    return shlex.join(["lab", "render", str(arguments.dir)])


def _render(folder: Path, exhibits: Sequence[str]) -> Sequence[Path]:
    from results.paper.render.main import render_folder  # matplotlib takes a second

    return render_folder(folder, folder / _RENDERED, exhibits)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="lab paper",
        description="Run what the paper's tables and figures need, and render them.",
    )
    parser.add_argument("--scale", choices=SCALES, default="smoke")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="EXHIBIT",
        help="table1 ... table8, figure1, figure1a ..., validation; all unless given",
    )  # fmt: skip
    parser.add_argument("--dir", type=Path, help=f"instead of {RUNS_DIR}/SCALE")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be run")
    parser.add_argument(
        "--retry", action="store_true", help="also run again what failed or cannot be read"
    )
    return parser
