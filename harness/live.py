"""What the user sees while it runs: bars on a terminal, plain lines anywhere else.

Everything goes to standard error, so that standard output holds the plan and the table only. A
plain line is written when something starts or ends, and else at most every half minute.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from harness.runner import Launch, Watch
from tpi.events import Event
from tpi.ranks import MASTER_RANK
from tpi.units import format_bytes, format_seconds

_LINE_EVERY_S = 30.0
_WIDE = 108  # columns of a terminal that hold everything


class Live:
    """Shows one thing at a time on `console`."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        self._last_line_s = 0.0

    def line(self, text: str) -> None:
        """Write one line that stays."""
        self._console.print(text, markup=False, soft_wrap=True)
        self._last_line_s = time.monotonic()

    @contextmanager
    def writing(self, what: str) -> Iterator[Callable[[int, int], None]]:
        """Show bytes done of bytes in all; yields what to call with both."""
        with self._bar(what) as show:
            yield lambda done, total: show(
                done / max(total, 1), f"{format_bytes(done)} of {format_bytes(total)}"
            )

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Show that something runs which cannot say how far it is."""
        with self._bar(what):
            yield

    @contextmanager
    def repeat(self, title: str, launch: Launch) -> Iterator[Watch]:
        """Show one repeat from its events; yields the runner's watch."""
        with self._bar(title) as show:
            state = _RepeatState(launch)
            show(0.0, state.text)

            def watch(rank: int, event: Event) -> None:
                state.take(rank, event)
                show(state.share, state.text)

            yield watch

    @contextmanager
    def _bar(self, title: str) -> Iterator[Callable[[float, str], None]]:
        if not self._console.is_terminal:
            self.line(f"{title} ...")
            yield lambda _, text: self._now_and_then(f"{title}: {text}")
            return
        is_wide = self._console.width >= _WIDE
        columns: list[ProgressColumn] = [
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24 if is_wide else 8),
            TextColumn("{task.fields[text]}", markup=False),
            TimeElapsedColumn(),
        ]
        if is_wide:
            columns += [TextColumn("left"), TimeRemainingColumn()]
        with Progress(
            *columns, console=self._console, transient=True, refresh_per_second=2
        ) as progress:
            task = progress.add_task(title, total=1.0, text="")
            yield lambda share, text: progress.update(task, completed=share, text=text)

    def _now_and_then(self, text: str) -> None:
        if time.monotonic() - self._last_line_s > _LINE_EVERY_S:
            self.line(text)


class _RepeatState:
    """Where a repeat stands, in words and as a share of its tokens."""

    def __init__(self, launch: Launch) -> None:
        self._launch = launch
        self._new_tokens = {r.id: r.new_tokens for r in launch.requests}
        self._warmup = {r.id for r in launch.requests if r.warmup}
        self._ready = 0
        self._tokens = 0
        self._in_request = 0
        self._request_ns = 0
        self._first_ns = 0
        self.text = f"starting {_devices(launch.world_size)}"

    @property
    def share(self) -> float:
        """Share of all tokens that are there."""
        return self._tokens / max(1, sum(self._new_tokens.values()))

    def take(self, rank: int, event: Event) -> None:
        """Take notice of one event."""
        if event.name == "ready":
            self._ready += 1
            self.text = f"{self._ready} of {_devices(self._launch.world_size)} ready"
        elif event.name == "request":
            self._in_request, self._request_ns = 0, event.t_ns
            self.text = f"{self._phase(event)}: prefill"
        elif event.name == "token" and rank == MASTER_RANK:
            self._token(event)

    def _token(self, event: Event) -> None:
        self._tokens += 1
        self._in_request += 1
        if self._in_request == 1:
            self._first_ns = event.t_ns
            speed = f"TTFT {format_seconds((event.t_ns - self._request_ns) / 1e9)}"
        else:
            mean_s = (event.t_ns - self._first_ns) / 1e9 / (self._in_request - 1)
            speed = f"{format_seconds(mean_s)}/token"
        of = self._new_tokens.get(event.request_id, 0)
        self.text = f"{self._phase(event)}: token {self._in_request} of {of}, {speed}"

    def _phase(self, event: Event) -> str:
        return "warm-up" if event.request_id in self._warmup else "measured"


def _devices(count: int) -> str:
    return "1 device" if count == 1 else f"{count} devices"
