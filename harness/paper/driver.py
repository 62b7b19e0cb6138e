"""Goes through the runs that the paper's exhibits need, one after another, and keeps the index.

One that fails, in whatever way, does not keep the others from running; one that its own probes call
invalid is measured once more. An interrupt leaves the index as far as it came. Read `Driver.run`
first.
"""

import contextlib
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console

from harness.paper.index_writer import EntryStatus, PaperIndex
from harness.paper.time_estimate import TimeLeft, time_words
from harness.paper.work import Work, WorkStatus
from testbed.base import DeviceError
from testbed.host.hostlock import host_lock
from tpi.errors import EXIT_OK, TpiError
from tpi.units import counted

EXIT_FAILED = 1
LOG_FILE = "log.txt"
_QUICK_S = 5.0  # what is done so soon gets one line and not two
_KINDS = ("measured", "simulated", "oom", "infeasible", "refused", "failed")


def _alone() -> None:
    """Raises DeviceError if another harness runs: then nothing more can be measured now."""
    with host_lock(allow_concurrent=False):
        pass


def make_command(verb: str, scale: str, *more: str) -> str:
    """A verb of the Makefile at a scale."""
    return " ".join(["make", verb, f"SCALE={scale}", *more])


class Driver:
    """Goes through all work; `run` is the whole of it.

    Args:
        works: What to do, in order.
        index: What to keep up to date.
        console: For people; `log` gets what single runs print.
        alone: Raises DeviceError if another harness runs on this host.
        others: What is not to be run: it is looked at if the index has to be made anew.
        again: The command that runs an exhibit again with what failed.
    """

    def __init__(
        self,
        works: Sequence[Work],
        index: PaperIndex,
        console: Console,
        log: Console,
        clock: Callable[[], float] = time.monotonic,
        alone: Callable[[], None] = _alone,
        others: Sequence[Work] = (),
        again: Callable[[str], str] | None = None,
    ) -> None:
        self._works = works
        self._index = index
        self._console = console
        self._log = log
        self._clock = clock
        self._alone = alone
        self._others = others
        self._again = again or (lambda exhibit: make_command(exhibit, index.scale, "RETRY=1"))
        self._time = TimeLeft()
        self._outlooks: list[WorkStatus] = []
        self._tried: set[int] = set()

    def run(self) -> int:
        """Do all that is to do; returns the exit status.

        Raises:
            KeyboardInterrupt: After the index has what was measured until then.
            DeviceError: Another harness runs on this host.
        """
        self._mend_index()
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
        self._line(f"looking at {counted(len(self._works), 'run')} ...")
        self._outlooks = [self._look(work) for work in self._works]
        for work, outlook in zip(self._works, self._outlooks, strict=True):
            self._note(work, outlook)
        counts = [f"{state} {len(self._numbers(state))}" for state in ("done", "refused", "failed")]
        todo = self._numbers("todo")
        total_s = sum(self._outlooks[at].predicted_s for at in todo)
        self._line(f"{', '.join(counts)}, to do {len(todo)}: about {self._about(total_s)}")

    def _mend_index(self) -> None:
        """Find what stands behind all other entries too where the index cannot say it."""
        if not self._index.problem:
            return
        self._line(f"{self._index.problem}; making it anew from the records")
        for work in self._others:
            self._note(work, self._look(work))

    def _look(self, work: Work) -> WorkStatus:
        try:
            return work.look()
        except Exception as exc:  # noqa: BLE001  # a defect in one must not end all the others
            return WorkStatus("failed", self._unexpected(exc))

    def _unexpected(self, exc: Exception) -> str:
        """Its line; the log gets where it came from."""
        text = "".join(traceback.format_exception(exc))
        self._log.print(text, markup=False, soft_wrap=True)
        return f"{type(exc).__name__}: {exc}; see {LOG_FILE}"

    def _do(self, at: int) -> None:
        """One piece of work, looked at again: free memory and disk are others now."""
        work, predicted_s = self._works[at], self._outlooks[at].predicted_s
        outlook, begin_s, reason = self._look(work), self._clock(), ""
        try:
            if outlook.state == "todo":
                self._tried.add(at)
                reason = self._try(work, outlook)
                outlook = self._look(work)
                if not reason and _was_disturbed(outlook):
                    self._line(f"    {outlook.reason}; once more ...")
                    reason = self._try(work, outlook)
                    outlook = self._look(work)
                outlook = _ended(outlook, reason)
        except KeyboardInterrupt:
            self._outlooks[at] = self._look(work)
            raise
        else:
            self._outlooks[at] = outlook
            if outlook.state == "done":  # what breaks off at once says nothing of the rest
                self._time.passed(predicted_s, self._clock() - begin_s)
        finally:
            self._note(self._works[at], self._outlooks[at])
            self._index.write()

    def _try(self, work: Work, outlook: WorkStatus) -> str:
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
        except Exception as exc:  # noqa: BLE001  # a defect in one must not end all the others
            return self._unexpected(exc)
        return ""

    @contextlib.contextmanager
    def _quiet(self) -> Iterator[None]:
        """On a terminal a run shows how far it is; elsewhere that is for the log."""
        if self._console.is_terminal:
            yield
            return
        with contextlib.redirect_stderr(self._log.file):
            yield

    def _note(self, work: Work, outlook: WorkStatus) -> None:
        # A record speaks for itself.
        reason = "" if outlook.run_id else outlook.reason
        standing = EntryStatus(
            outlook.run_id,
            refusal=reason if outlook.state == "refused" else "",
            failure=reason if outlook.state == "failed" else "",
        )
        self._index.note(work.entries, standing)
        if work.study is not None:
            self._index.note_study(work.study, standing)

    def _close(self) -> int:
        for state in ("refused", "failed"):
            for at in self._numbers(state):
                work, reason = self._works[at], self._outlooks[at].reason
                # What cannot be asked for so has no run to repeat: its reason says what to do.
                was_run = at in self._tried or self._outlooks[at].run_id
                is_again = state == "failed" and was_run
                more = f"; again: {self._again(min(work.exhibits))}" if is_again else ""
                self._line(f"{state}: {work.title}: {reason}{more}")
        kinds = Counter(each.kind or each.state for each in self._outlooks)
        counts = ", ".join(f"{kind} {kinds[kind]}" for kind in _KINDS)
        self._line(f"{counted(len(self._works), 'run')}: {counts}")
        return EXIT_FAILED if self._numbers("failed") else EXIT_OK

    def _numbers(self, state: str) -> list[int]:
        return [at for at, outlook in enumerate(self._outlooks) if outlook.state == state]

    def _about(self, predicted_s: float) -> str:
        return time_words(self._time.about_s(predicted_s))

    def _line(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)


def _was_disturbed(outlook: WorkStatus) -> bool:
    """Whether a probe did not hold: what disturbed it may be gone, and a second try costs less."""
    return outlook.state == "todo" and outlook.kind == "invalid"


def _ended(outlook: WorkStatus, reason: str) -> WorkStatus:
    """How it stands after it was run: what still is to do has failed, by what just broke off."""
    if outlook.state not in ("todo", "failed") or (outlook.state == "failed" and not reason):
        return outlook
    text = reason or outlook.reason or "it left no record"
    return WorkStatus("failed", text, outlook.run_id)


def _words(outlook: WorkStatus) -> str:
    return outlook.reason if outlook.state == "done" else f"{outlook.state}: {outlook.reason}"
