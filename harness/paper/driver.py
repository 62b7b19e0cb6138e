"""Goes through the runs that the paper's exhibits need, one after another, and keeps the index.

A run that fails does not stop the others; one that its own probes call invalid is measured once
more. After an interrupt the index has everything that was measured.
"""

import contextlib
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from rich.console import Console

from harness.paper.index_writer import PaperIndex
from harness.paper.work import Work, WorkStatus
from testbed.base import DeviceError
from testbed.host.hostlock import host_lock
from tpi.errors import EXIT_OK, TpiError
from tpi.units import counted

EXIT_FAILED = 1
LOG_FILE = "log.txt"
_QUICK_S = 5.0  # work that is done so soon gets one line instead of two
_KINDS = ("measured", "simulated", "oom", "infeasible", "refused", "failed")
_BELIEVED_S = 60.0  # of predictions, before anything has passed


def _alone() -> None:
    """Raises DeviceError if another harness runs: then nothing more can be measured now."""
    with host_lock(allow_concurrent=False):
        pass


def make_command(verb: str, scale: str, *more: str) -> str:
    """A verb of the Makefile at a scale."""
    return " ".join(["make", verb, f"SCALE={scale}", *more])


def time_words(seconds: float) -> str:
    """A time as people say it: `45 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


class TimeLeft:
    """Predictions, corrected by how far they were off until now."""

    def __init__(self) -> None:
        self._predicted_s = self._taken_s = _BELIEVED_S

    def passed(self, predicted_s: float, taken_s: float) -> None:
        """Something that was predicted has been done."""
        self._predicted_s += predicted_s
        self._taken_s += taken_s

    def about_s(self, predicted_s: float) -> float:
        """The corrected prediction."""
        return predicted_s * self._taken_s / self._predicted_s


@dataclass
class Driver:
    """Goes through all work; `run` is the whole of it.

    `console` is for people, `log` gets what single runs print. `alone` raises DeviceError if
    another harness runs on this host. `others` are not run, but looked at if the index has to be
    made anew. `again` names the command that runs an exhibit again with what failed.
    """

    works: Sequence[Work]
    index: PaperIndex
    console: Console
    log: Console
    clock: Callable[[], float] = time.monotonic
    alone: Callable[[], None] = _alone
    others: Sequence[Work] = ()
    again: Callable[[str], str] | None = None
    _time: TimeLeft = field(default_factory=TimeLeft)
    _states: list[WorkStatus] = field(default_factory=list)
    _tried: set[int] = field(default_factory=set)

    def run(self) -> int:
        """Do all that is to do; returns the exit status.

        Raises:
            KeyboardInterrupt: After the index has what was measured until then.
            DeviceError: Another harness runs on this host.
        """
        if self.index.problem:  # the index cannot say what stands behind the other entries
            self._line(f"{self.index.problem}; making it anew from the records")
            for work in self.others:
                self._note(work, self._look(work))
        self._look_at_all()
        self.index.write()
        todo = self._numbers("todo")
        for number, at in enumerate(todo, start=1):
            predicted_s = self._states[at].predicted_s
            what = f"[{number}/{len(todo)}] {self.works[at].title}"
            is_quick = predicted_s < _QUICK_S
            if not is_quick:
                left_s = sum(self._states[i].predicted_s for i in todo[number - 1 :])
                self._line(
                    f"{what} ... {self._about(predicted_s)}, about {self._about(left_s)} left"
                )
            self._do(at)
            end = self._states[at]
            words = end.reason if end.state == "done" else f"{end.state}: {end.reason}"
            self._line(f"{f'{what}:' if is_quick else '   '} {words}")
        return self._close()

    def dry_run(self) -> int:
        """Say what would be run and how long it would take; nothing is started or written."""
        self._look_at_all()
        for work, state in zip(self.works, self._states, strict=True):
            about = f", {self._about(state.predicted_s)}" if state.predicted_s else ""
            reason = f": {state.reason}" if state.reason else ""
            self._line(f"{state.state:<8}{work.title}{about}{reason}")
        return EXIT_FAILED if self._numbers("failed") else EXIT_OK

    def _look_at_all(self) -> None:
        self._line(f"looking at {counted(len(self.works), 'run')} ...")
        self._states = [self._look(work) for work in self.works]
        for work, state in zip(self.works, self._states, strict=True):
            self._note(work, state)
        counts = [f"{state} {len(self._numbers(state))}" for state in ("done", "refused", "failed")]
        todo = self._numbers("todo")
        total_s = sum(self._states[at].predicted_s for at in todo)
        self._line(f"{', '.join(counts)}, to do {len(todo)}: about {self._about(total_s)}")

    def _look(self, work: Work) -> WorkStatus:
        try:
            return work.look()
        except Exception as exc:  # noqa: BLE001  # a defect in one must not end all the others
            return WorkStatus("failed", self._unexpected(exc))

    def _unexpected(self, exc: Exception) -> str:
        """The line of a defect; the log gets its traceback."""
        text = "".join(traceback.format_exception(exc))
        self.log.print(text, markup=False, soft_wrap=True)
        return f"{type(exc).__name__}: {exc}; see {LOG_FILE}"

    def _do(self, at: int) -> None:
        """Do one piece of work, looked at again: free memory and disk have changed."""
        work, predicted_s = self.works[at], self._states[at].predicted_s
        state, begin_s = self._look(work), self.clock()
        try:
            if state.state == "todo":
                self._tried.add(at)
                reason, state = self._try(work, state)
                if not reason and state.state == "todo" and state.kind == "invalid":
                    # Whatever disturbed it may be gone, and a second try costs less.
                    self._line(f"    {state.reason}; once more ...")
                    reason, state = self._try(work, state)
                state = _ended(state, reason)
        except KeyboardInterrupt:
            self._states[at] = self._look(work)
            raise
        else:
            self._states[at] = state
            if state.state == "done":  # work that broke off says nothing about the rest
                self._time.passed(predicted_s, self.clock() - begin_s)
        finally:
            self._note(self.works[at], self._states[at])
            self.index.write()

    def _try(self, work: Work, state: WorkStatus) -> tuple[str, WorkStatus]:
        """Run it; returns why it broke off, empty if it did not, and its state afterwards."""
        self.log.print(f"\n== {work.title}", markup=False, soft_wrap=True)
        reason = ""
        try:
            with self._quiet():
                work.run(state, self.log)
        except (TpiError, OSError) as exc:
            self.log.print(str(exc), markup=False, soft_wrap=True)
            if isinstance(exc, DeviceError):
                self.alone()
            reason = str(exc) or type(exc).__name__
        except Exception as exc:  # noqa: BLE001  # a defect in one must not end all the others
            reason = self._unexpected(exc)
        return reason, self._look(work)

    @contextlib.contextmanager
    def _quiet(self) -> Iterator[None]:
        """Progress of a run belongs on a terminal; elsewhere it goes to the log."""
        if self.console.is_terminal:
            yield
            return
        with contextlib.redirect_stderr(self.log.file):
            yield

    def _note(self, work: Work, state: WorkStatus) -> None:
        # A record speaks for itself.
        reason = "" if state.run_id else state.reason
        refusal = reason if state.state == "refused" else ""
        failure = reason if state.state == "failed" else ""
        self.index.note(work.entries, state.run_id, refusal, failure)
        if work.study is not None:
            self.index.note_study(work.study, refusal, failure)

    def _close(self) -> int:
        again = self.again or (lambda e: make_command(e, self.index.scale, "RETRY=1"))
        for state in ("refused", "failed"):
            for at in self._numbers(state):
                work, reason = self.works[at], self._states[at].reason
                # If it cannot be asked for so, there is nothing to repeat: its reason says why.
                was_run = at in self._tried or self._states[at].run_id
                is_again = state == "failed" and was_run
                more = f"; again: {again(min(work.exhibits))}" if is_again else ""
                self._line(f"{state}: {work.title}: {reason}{more}")
        kinds = Counter(each.kind or each.state for each in self._states)
        counts = ", ".join(f"{kind} {kinds[kind]}" for kind in _KINDS)
        self._line(f"{counted(len(self.works), 'run')}: {counts}")
        return EXIT_FAILED if self._numbers("failed") else EXIT_OK

    def _numbers(self, state: str) -> list[int]:
        return [at for at, each in enumerate(self._states) if each.state == state]

    def _about(self, predicted_s: float) -> str:
        return time_words(self._time.about_s(predicted_s))

    def _line(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=True)


def _ended(state: WorkStatus, reason: str) -> WorkStatus:
    """The state after a run: work that still is to do has failed, for the reason it broke off."""
    if state.state not in ("todo", "failed") or (state.state == "failed" and not reason):
        return state
    return WorkStatus("failed", reason or state.reason or "it left no record", state.run_id)
