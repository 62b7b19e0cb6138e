"""Run what the paper's tables and figures need, and render them: `lab paper`.

    lab paper --scale smoke                  # as make paper
    lab paper --scale small --only table1    # as make table1 SCALE=small
    lab paper --scale full --dry-run

Runs that have a record are not run again, so the same command goes on after it was stopped. One run
that fails does not stop the others. Records and `index.json` lie in `results/paper-runs/SCALE`,
with the output of single runs in `log.txt` and what is rendered in `rendered/`. `plan.py` says what
to run, `work.py` how; `driver.py` goes through it.
"""

import argparse
import functools
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from harness.paper.driver import LOG_FILE, Driver, make_command
from harness.paper.index_writer import PaperIndex, folder_lock
from harness.paper.plan import exhibits_of, read_plan
from harness.paper.work import works_of
from harness.run.failure import run_command
from harness.run.session import WIDTH, Output
from results.paper.cell import ALL_EXHIBITS, SCALES
from tpi.command_line import Parser
from tpi.units import counted

RUNS_DIR = Path("results/paper-runs")
_RENDERED = "rendered"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    arguments = _parser().parse_args(argv)
    words = (
        "interrupted; the same command goes on where it stopped, and what there is so far is"
        f" drawn by: {_command(arguments, 'render')}"
    )
    return run_command("paper", functools.partial(_run, arguments), words)


def _run(arguments: argparse.Namespace) -> int:
    console = Output(highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    plan = read_plan(arguments.scale)
    wanted = {e for word in arguments.only for e in exhibits_of(word)} or set(ALL_EXHIBITS)
    folder = Path(arguments.dir or RUNS_DIR / arguments.scale)
    all_works = works_of(plan.entries, plan.studies, folder, retry=arguments.retry)
    works = [work for work in all_works if work.exhibits & wanted]
    if arguments.dry_run:
        index = PaperIndex(folder, plan.scale, plan.entries)
        return Driver(works, index, console, console).dry_run()
    with folder_lock(folder):
        others = [work for work in all_works if not work.exhibits & wanted]
        index = PaperIndex(folder, plan.scale, plan.entries)
        with (folder / LOG_FILE).open("a", encoding="utf-8") as file:
            log = Output(file=file, highlight=False, width=WIDTH)
            again = functools.partial(_again_command, arguments)
            status = Driver(works, index, console, log, others=others, again=again).run()
        paths = _render(folder, [e for e in ALL_EXHIBITS if e in wanted])
    where, report = folder / _RENDERED, _command(arguments, "report")
    for line in (f"{counted(len(paths), 'file')} in {where}", f"next: {report}"):
        console.print(line, markup=False, soft_wrap=True)
    return status


def _again_command(arguments: argparse.Namespace, exhibit: str) -> str:
    """The command that runs an exhibit again with what failed."""
    exhibit, scale = exhibit.rstrip("abc"), arguments.scale
    if arguments.dir is None:
        return make_command(exhibit, scale, "RETRY=1")
    words = ["lab", "paper", "--scale", scale, "--only", exhibit]
    return shlex.join([*words, "--dir", str(arguments.dir), "--retry"])


def _command(arguments: argparse.Namespace, verb: str) -> str:
    """The command that renders or reports the folder."""
    if arguments.dir is None:
        return make_command(verb, arguments.scale)
    return shlex.join(["lab", verb, str(arguments.dir)])


def _render(folder: Path, exhibits: Sequence[str]) -> Sequence[Path]:
    from results.paper.cells.load import open_result_set  # scipy takes a second
    from results.paper.render.main import render_result_set

    return render_result_set(open_result_set(folder), folder / _RENDERED, exhibits)


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
