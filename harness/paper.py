"""Run what the paper's tables and figures need, and render them: `python -m harness.paper`.

    python -m harness.paper --scale smoke              # as make paper
    python -m harness.paper --scale small --only table1    # as make table1 SCALE=small
    python -m harness.paper --scale full --dry-run

What has a record is not run again, so it can be stopped (Ctrl-C, SIGTERM) and the same command goes
on. One run that fails does not keep the others from running. Records and `index.json` lie in
`results/paper-runs/SCALE`, with what single runs print in `log.txt` and what is rendered in
`rendered/`. Read `Driver.run` first; `paper_plan.py` has what to run, `paper_work.py` how.
"""

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich.console import Console

from harness.paper_index import PaperIndex
from harness.paper_plan import exhibits_of, read_plan
from harness.paper_time import TimeLeft, time_words
from harness.paper_work import Outlook, Work, works_of
from harness.session import WIDTH, Output
from harness.signals import PoliteSignals, ignore_signals
from results.cells import EXHIBITS, SCALES
from testbed.base import DeviceError
from testbed.hostlock import host_lock
from tpi.errors import EXIT_INTERRUPTED, EXIT_OK, ResourceError, TpiError

RUNS_DIR = Path("results/paper-runs")
EXIT_FAILED = 1
_QUICK_S = 5.0  # what is done so soon gets one line and not two
_LOG, _RENDERED = "log.txt", "rendered"


def _alone() -> None:
    """Raises DeviceError if another harness runs: then nothing more can be measured now."""
    with host_lock(allow_concurrent=False):
        pass


class Driver:
    """Goes through all work; `run` is the whole of it.

    Args:
        works: What to do, in order.
        index: What to keep up to date.
        console: For people; `log` gets what single runs print.
        alone: Raises DeviceError if another harness runs on this host.
    """

    def __init__(
        self,
        works: Sequence[Work],
        index: PaperIndex,
        console: Console,
        log: Console,
        clock: Callable[[], float] = time.monotonic,
        alone: Callable[[], None] = _alone,
    ) -> None:
        self._works = works
        self._index = index
        self._console = console
        self._log = log
        self._clock = clock
        self._alone = alone
        self._time = TimeLeft()
        self._outlooks: list[Outlook] = []

    def run(self) -> int:
        """Do all that is to do; returns the exit status.

        Raises:
            KeyboardInterrupt: After the index has what was measured until then.
            DeviceError: Another harness runs on this host.
        """
        self._look_at_all()
        self._index.write()
        todo = self._numbers("todo")
        for number, at in enumerate(todo, start=1):
            work, outlook = self._works[at], self._outlooks[at]
            left_s = sum(self._outlooks[i].predicted_s for i in todo[number - 1 :])
            what = f"[{number}/{len(todo)}] {work.title}"
            is_quick = outlook.predicted_s < _QUICK_S
            if not is_quick:
                about = self._about(outlook.predicted_s)
                self._line(f"{what} ... {about}, about {self._about(left_s)} left")
            self._do(at)
            self._line(f"{f'{what}:' if is_quick else '   '} {_words(self._outlooks[at])}")
        return self._close()

    def dry_run(self) -> int:
        """Say what would be run and how long it would take; nothing is started or written."""
        self._look_at_all()
        for work, outlook in zip(self._works, self._outlooks, strict=True):
            about = f", {self._about(outlook.predicted_s)}" if outlook.predicted_s else ""
            reason = f": {outlook.reason}" if outlook.reason else ""
            self._line(f"{outlook.state:<8}{work.title}{about}{reason}")
        return EXIT_FAILED if self._numbers("failed") else EXIT_OK

    def _look_at_all(self) -> None:
        self._line(f"looking at {len(self._works)} runs ...")
        self._outlooks = [work.look() for work in self._works]
        for at in range(len(self._works)):
            self._note(at)
        counts = [f"{state} {len(self._numbers(state))}" for state in ("done", "refused", "failed")]
        todo = self._numbers("todo")
        total_s = sum(self._outlooks[at].predicted_s for at in todo)
        self._line(f"{', '.join(counts)}, to do {len(todo)}: about {self._about(total_s)}")

    def _do(self, at: int) -> None:
        """One piece of work, looked at again: free memory and disk are others now."""
        work, predicted_s = self._works[at], self._outlooks[at].predicted_s
        outlook, begin_s, reason = work.look(), self._clock(), ""
        try:
            if outlook.state == "todo":
                reason = self._try(work, outlook)
                outlook = _ended(work.look(), reason)
        except KeyboardInterrupt:
            self._outlooks[at] = work.look()
            raise
        else:
            self._outlooks[at] = outlook
        finally:
            self._time.passed(predicted_s, self._clock() - begin_s)
            self._note(at)
            self._index.write()

    def _try(self, work: Work, outlook: Outlook) -> str:
        """Run it; returns why it broke off, empty if it did not."""
        self._log.print(f"\n== {work.title}", markup=False, soft_wrap=True)
        try:
            with self._quiet():
                work.run(outlook, self._log)
        except (TpiError, OSError) as exc:
            self._log.print(str(exc), markup=False, soft_wrap=True)
            if isinstance(exc, DeviceError):
                self._alone()
            return str(exc) or type(exc).__name__
        return ""

    @contextlib.contextmanager
    def _quiet(self) -> Iterator[None]:
        """On a terminal a run shows how far it is; elsewhere that is for the log."""
        if self._console.is_terminal:
            yield
            return
        with contextlib.redirect_stderr(self._log.file):
            yield

    def _note(self, at: int) -> None:
        outlook = self._outlooks[at]
        # A record speaks for itself.
        is_refusal = outlook.state in ("refused", "failed") and not outlook.run_id
        refusal = outlook.reason if is_refusal else ""
        self._index.note(self._works[at].entries, run_id=outlook.run_id, refusal=refusal)

    def _close(self) -> int:
        for state in ("refused", "failed"):
            for at in self._numbers(state):
                self._line(f"{state}: {self._works[at].title}: {self._outlooks[at].reason}")
        counts = ", ".join(f"{state} {len(self._numbers(state))}"
                           for state in ("done", "refused", "failed"))  # fmt: skip
        self._line(counts)
        return EXIT_FAILED if self._numbers("failed") else EXIT_OK

    def _numbers(self, state: str) -> list[int]:
        return [at for at, outlook in enumerate(self._outlooks) if outlook.state == state]

    def _about(self, predicted_s: float) -> str:
        return time_words(self._time.about_s(predicted_s))

    def _line(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)


def _ended(outlook: Outlook, reason: str) -> Outlook:
    """How it stands after it was run: what still is to do has failed."""
    if outlook.state != "todo":
        return outlook
    text = reason or outlook.reason or "it left no record"
    return Outlook("failed", text, outlook.run_id)


def _words(outlook: Outlook) -> str:
    return outlook.reason if outlook.state == "done" else f"{outlook.state}: {outlook.reason}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    arguments = _parser().parse_args(argv)
    with PoliteSignals() as signals:
        try:
            return _run(arguments)
        except (TpiError, OSError) as exc:
            sys.stderr.write(f"paper: {' '.join(str(exc).split())}\n")
            status = exc.exit_status if isinstance(exc, TpiError) else ResourceError.exit_status
        except KeyboardInterrupt:
            sys.stderr.write("paper: interrupted; the same command goes on where it stopped\n")
            status = EXIT_INTERRUPTED
    return EXIT_INTERRUPTED if signals.seen else status


def _run(arguments: argparse.Namespace) -> int:
    console = Output(highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    plan = read_plan(arguments.scale)
    wanted = {e for word in arguments.only for e in exhibits_of(word)} or set(EXHIBITS)
    folder = arguments.dir or RUNS_DIR / arguments.scale
    index = PaperIndex(folder, plan.scale, plan.entries)
    works = [
        work
        for work in works_of(plan.entries, plan.studies, folder, retry=arguments.retry)
        if work.exhibits & wanted
    ]
    if arguments.dry_run:
        return Driver(works, index, console, console).dry_run()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOG).open("a", encoding="utf-8") as file:
        log = Output(file=file, highlight=False, width=WIDTH)
        status = Driver(works, index, console, log).run()
    for path in _render(folder, [e for e in EXHIBITS if e in wanted]):
        console.print(str(path), markup=False, soft_wrap=True)
    return status


def _render(folder: Path, exhibits: Sequence[str]) -> Sequence[Path]:
    from results.render import render_folder  # matplotlib takes a second

    return render_folder(folder, folder / _RENDERED, exhibits)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m harness.paper",
        description="Run what the paper's tables and figures need, and render them.",
    )
    parser.add_argument("--scale", choices=SCALES, default="smoke")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="EXHIBIT",
        help="table1 ... table8, figure1, figure1a ...; all unless given",
    )  # fmt: skip
    parser.add_argument("--dir", type=Path, help=f"instead of {RUNS_DIR}/SCALE")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be run")
    parser.add_argument(
        "--retry", action="store_true", help="also run again what crashed or gave wrong tokens"
    )
    return parser


if __name__ == "__main__":
    exit_status = main()
    ignore_signals()
    sys.exit(exit_status)
