"""Progress for the user: a view that stays in place on a terminal, plain lines elsewhere.

Everything goes to standard error; standard output holds the plan and the table only. Inside `run`
the view is a table of all systems; lines written meanwhile stay above it. A thread refreshes it
twice a second. A plain line is written when something starts or ends, and every half minute.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from rich.console import Console, RenderableType
from rich.live import Live as RichLive

from harness.progress.live_table import bar_line, format_clock, format_memory, run_view
from harness.progress.progress import Clock, RepeatProgress, RunProgress
from results.records.schema import Repeat
from tpi.program.spec import Request
from tpi.units import format_bytes

_LINE_EVERY_S = 30.0
_TICK_S = 0.5


@dataclass
class _Activity:
    """What goes on beside the table, such as a repeat outside a run."""

    title: str
    start_s: float
    share: float | None = None
    text: str = ""
    repeat: RepeatProgress | None = None
    is_row: bool = False

    def describe(self) -> tuple[float | None, str]:
        """How far it is, and in words."""
        if self.repeat is None:
            return self.share, self.text
        memory = format_memory(self.repeat.memory)
        return self.repeat.share, self.repeat.words + (f", memory {memory}" if memory else "")


class Live:
    """Shows one run, and what goes on before and in it, on `console` or standard error.

    The view is refreshed every `tick_s`; if that is None, the caller calls `tick` itself.
    """

    def __init__(
        self,
        console: Console | None = None,
        clock: Clock = time.monotonic,
        tick_s: float | None = _TICK_S,
    ) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        self._clock = clock
        self._tick_s = tick_s
        self._last_line_s = clock()
        self._run: RunProgress | None = None
        self._activities: list[_Activity] = []
        self._view: RichLive | None = None
        self._is_shown = False

    def line(self, text: str) -> None:
        """Write one line that stays."""
        self._last_line_s = self._clock()
        self._console.print(text, markup=False, soft_wrap=True)

    @contextmanager
    def writing(self, what: str) -> Iterator[Callable[[int, int], None]]:
        """Show bytes done of bytes in all; yields what to call with both."""
        with self._activity(what) as activity:

            def progress(done: int, total: int) -> None:
                activity.share = done / max(total, 1)
                activity.text = f"{format_bytes(done)} of {format_bytes(total)}"

            yield progress

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Show that something runs which cannot say how far it is."""
        with self._activity(what):
            yield

    @contextmanager
    def run(self, todo: Mapping[str, int], repeats: int) -> Iterator[None]:
        """Show a table of systems; `todo` says how many of `repeats` each has still to do."""
        self._run = RunProgress(todo, repeats, self._clock)
        try:
            with self._shown():
                yield
        finally:
            self._run = None

    @contextmanager
    def repeat(
        self, title: str, system: str, requests: Sequence[Request], world_size: int
    ) -> Iterator[RepeatProgress]:
        """Show one repeat, in its system's row if there is one; yields the runner's watch."""
        progress = RepeatProgress(requests, world_size, self._clock)
        row = self._run.rows.get(system) if self._run is not None else None
        with self._activity(title, progress, is_row=row is not None):
            if row is not None:
                row.running = progress
            try:
                yield progress
            finally:
                if row is not None:
                    row.stopped()

    def ended(self, system: str, repeat: Repeat) -> None:
        """Show how the repeat of a system was judged: it is done, or the system has failed."""
        if self._run is not None and system in self._run.rows:
            self._run.rows[system].judged(repeat)

    def tick(self) -> None:
        """Refresh the view, or write a plain line if it is time for one."""
        activity = self._activities[-1] if self._activities else None
        if activity is not None and activity.repeat is not None:
            activity.repeat.read_memory()
        if self._view is not None:
            self._view.refresh()
        elif activity is not None and self._clock() - self._last_line_s >= _LINE_EVERY_S:
            self.line(f"{activity.title}: {self._words(activity)}")

    @contextmanager
    def _activity(
        self, title: str, repeat: RepeatProgress | None = None, *, is_row: bool = False
    ) -> Iterator[_Activity]:
        activity = _Activity(title, self._clock(), repeat=repeat, is_row=is_row)
        if not self._is_terminal:
            self.line(f"{title} ...")
        self._activities.append(activity)
        try:
            with self._shown():
                yield activity
        finally:
            self._activities.remove(activity)

    @contextmanager
    def _shown(self) -> Iterator[None]:
        """While the body runs, the view is there and refreshed; inside another, that one is."""
        if self._is_shown:
            yield
            return
        with ExitStack() as stack:
            self._is_shown = True
            stack.callback(self._hide)
            if self._is_terminal:
                self._view = stack.enter_context(
                    RichLive(
                        console=self._console, get_renderable=self._render, auto_refresh=False,
                        transient=True, redirect_stdout=False,
                    )
                )  # fmt: skip
            if self._tick_s is not None:
                stack.enter_context(_ticking(self.tick, self._tick_s))
            yield

    def _hide(self) -> None:
        self._is_shown, self._view = False, None

    @property
    def _is_terminal(self) -> bool:
        return self._console.is_terminal and not self._console.is_dumb_terminal

    def _render(self) -> RenderableType:
        width = self._console.width
        lines = [
            bar_line(a.title, a.describe()[0], self._words(a), width)
            for a in self._activities[-1:]
            if not a.is_row
        ]
        if self._run is not None:
            return run_view(self._run, width, *lines)
        return lines[0] if lines else ""

    def _words(self, activity: _Activity) -> str:
        text, elapsed = activity.describe()[1], format_clock(self._clock() - activity.start_s)
        return f"{text}, {elapsed}" if text else elapsed


@contextmanager
def _ticking(tick: Callable[[], None], every_s: float) -> Iterator[None]:
    """Call `tick` from a thread of its own until the body ends."""
    over = threading.Event()

    def repeat() -> None:
        while not over.wait(every_s):
            tick()

    thread = threading.Thread(target=repeat, name="live", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
