"""A program that was started: what it says arrives line by line in an `Inbox`, at last its `Exit`.

All programs of a run share one inbox, so that one thread can wait for whichever speaks first.
Closing a program's standard input ends its lease (`events.py`).
"""

import contextlib
import queue
import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from tpi.errors import ResourceError, TpiError
from tpi.program.events import MAX_LINE_BYTES

# A program that writes faster than its lines are read waits; it cannot fill the host's memory: at
# most 32 MiB of the longest lines.
MAX_WAITING_LINES = 512
_RETRY_S = 0.2
# A killed process still has to give back its memory, some GiB of it.
_KILL_S = 30.0


@dataclass(frozen=True, slots=True)
class Exit:
    """How a program ended."""

    code: int  # exit status, or minus the number of the signal that killed it
    stopped: bool  # the testbed stopped it: its code says nothing about the program
    oom: bool  # it, or a process that it started, was killed for want of the device's memory
    t_ns: int  # CLOCK_MONOTONIC when the end was seen
    log_tail: str = ""  # the last lines of its standard error
    host_oom: bool = False  # the host ran out of memory instead: then the run says nothing


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


class Process(ABC):
    """A program that was started on a device; derived classes start, signal and reap it."""

    start_ns: int  # CLOCK_MONOTONIC just before it was started
    pid: int
    cannot_be_killed: ClassVar[type[TpiError]] = ResourceError

    def __init__(self, device: int, inbox: Inbox) -> None:
        self._device = device
        self._lines = LineFeeder(device, inbox)
        self._ended = threading.Event()
        self._exit: Exit | None = None

    def _serve(self, read: Callable[[], None], await_end: Callable[[], None]) -> None:
        """Run two threads: one reads its output, one waits for its end and sets `_exit`."""
        name = f"stdout-{self._device}"
        self._reader = threading.Thread(target=read, name=name, daemon=True)
        waiter = threading.Thread(target=await_end, name=f"exit-{self._device}", daemon=True)
        self._reader.start()
        waiter.start()

    @property
    def running(self) -> bool:
        """Whether its end was not yet seen."""
        return not self._ended.is_set()

    @abstractmethod
    def send(self, line: str) -> None:
        """Write one line to its standard input; nothing happens if it has ended."""

    @abstractmethod
    def release(self) -> None:
        """Close its standard input: its lease ends, and it should end by itself."""

    @abstractmethod
    def signal(self, number: int) -> None:
        """Send a signal to it and its session; nothing happens once it ended."""

    def wait(self, timeout_s: float) -> Exit | None:
        """Wait for its end; None if it still runs after `timeout_s`."""
        self._ended.wait(timeout_s)
        return self._exit

    def ask_to_end(self) -> None:
        """Close its input and terminate it, without waiting."""
        self._lines.stopping = True
        self.release()
        self.signal(signal.SIGTERM)
        # A paused process would keep its SIGTERM waiting.
        self.signal(signal.SIGCONT)

    def stop(self, grace_s: float = 2.0) -> Exit:
        """End it: close its input, terminate, after `grace_s` kill, and reap. Twice is fine.

        Raises:
            TpiError: The kernel does not let it go (it hangs in a device's driver).
        """
        # Also where it ended by itself: its exit must not wait for room in a full inbox for ever.
        self._lines.stopping = True
        if not self._ended.is_set():
            self.ask_to_end()
            if not self._ended.wait(grace_s):
                self._kill()
                self._ended.wait(_KILL_S)
        if self._exit is None:
            raise self.cannot_be_killed(
                f"device {self._device}: process {self.pid} cannot be killed"
            )
        return self._exit

    def _kill(self) -> None:
        self.signal(signal.SIGKILL)

    def _drain(self, timeout_s: float) -> None:
        """Read what it wrote last, as long as somebody takes it."""
        self._reader.join(timeout=timeout_s)
        while self._reader.is_alive() and self._lines.is_waiting:
            self._reader.join(timeout=_RETRY_S)
