"""A program that was started: what it says arrives line by line in an `Inbox`, at last its `Exit`.

All programs of a run share one inbox, so that one thread can wait for whichever speaks first.
Closing a program's standard input ends its lease (`events.py`).
"""

import contextlib
import queue
from dataclasses import dataclass
from typing import Protocol

from tpi.program.events import MAX_LINE_BYTES

# A program that writes faster than its lines are read waits; it cannot fill the host's memory: at
# most 32 MiB of the longest lines.
MAX_WAITING_LINES = 512
_RETRY_S = 0.2


@dataclass(frozen=True, slots=True)
class Exit:
    """How a program ended.

    Attributes:
        code: Exit status, or minus the number of the signal that killed it.
        stopped: Whether the testbed stopped it (its code then says nothing about the program).
        oom: Whether it, or a process that it started, was killed for want of the device's memory.
        t_ns: CLOCK_MONOTONIC when the end was seen.
        log_tail: The last lines of its standard error.
        host_oom: Whether the host ran out of memory instead: then the run says nothing.
    """

    code: int
    stopped: bool
    oom: bool
    t_ns: int
    log_tail: str = ""
    host_oom: bool = False


@dataclass(frozen=True, slots=True)
class Output:
    """A line of one device's program without its line end, or its exit (always the last)."""

    device: int
    line: bytes = b""
    truncated: bool = False
    exit: Exit | None = None


Inbox = queue.Queue[Output]


def make_inbox() -> Inbox:
    """An inbox of bounded size for all programs of one run."""
    return queue.Queue(MAX_WAITING_LINES)


class Process(Protocol):
    """A program that was started on a device."""

    @property
    def start_ns(self) -> int:
        """CLOCK_MONOTONIC just before it was started."""

    def send(self, line: str) -> None:
        """Write one line to its standard input; nothing happens if it has ended."""

    def release(self) -> None:
        """Close its standard input: its lease ends, and it should end by itself."""

    def signal(self, number: int) -> None:
        """Send a signal to it and its session; nothing happens once it ended."""

    def wait(self, timeout_s: float) -> Exit | None:
        """Wait for its end; None if it still runs after `timeout_s`."""

    def stop(self, grace_s: float = 2.0) -> Exit:
        """End it: close its input, terminate, after `grace_s` kill, and reap. Twice is fine."""


class LineFeeder:
    """One program's side of the inbox; `stopping` may be set from any thread."""

    def __init__(self, device: int, inbox: Inbox) -> None:
        self._device = device
        self._inbox = inbox
        self._pending = b""
        self._skipping = False
        self.stopping = False

    @property
    def is_waiting(self) -> bool:
        """Whether it is held up because nobody reads the inbox."""
        return self._inbox.full() and not self.stopping

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the output, cut anywhere."""
        *lines, self._pending = (self._pending + data).split(b"\n")
        for line in lines:
            if not self._skipping:
                self._put(line)
            self._skipping = False
        if len(self._pending) > MAX_LINE_BYTES:
            if not self._skipping:
                self._put(self._pending)
            self._pending, self._skipping = b"", True

    def finish(self) -> None:
        """The output has ended, maybe within a line."""
        if self._pending and not self._skipping:
            self._put(self._pending)
        self._pending = b""

    def put_exit(self, end: Exit) -> None:
        """Say how the program ended; after that nothing may come."""
        while True:
            with contextlib.suppress(queue.Full):
                self._inbox.put(Output(self._device, exit=end), timeout=_RETRY_S)
                return
            if self.stopping:
                return

    def _put(self, line: bytes) -> None:
        output = Output(self._device, line[:MAX_LINE_BYTES], truncated=len(line) > MAX_LINE_BYTES)
        while not self.stopping:
            with contextlib.suppress(queue.Full):
                self._inbox.put(output, timeout=_RETRY_S)
                return
        with contextlib.suppress(queue.Full):
            self._inbox.put_nowait(output)
