"""What a program writes: its output cut into lines for the shared inbox, its log kept in bounds.

Whoever reads the program's output feeds it here and is held up while the inbox is full, so that
the program waits too. Once it is being stopped nobody need read any more, and what does not fit is
dropped.
"""

import contextlib
import queue
from pathlib import Path

from testbed.base import MAX_LINE_BYTES, Exit, Inbox, Output

_RETRY_S = 0.2
_LOG_TAIL_BYTES = 4096
_MAX_LOG_BYTES = 16 << 20


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


class BoundedLog:
    """A file that stops growing at some size, and its last lines."""

    def __init__(self, path: Path, max_bytes: int = _MAX_LOG_BYTES) -> None:
        self._file = path.open("xb")
        self._left = max_bytes
        self._tail = b""

    @property
    def tail(self) -> str:
        """The last lines, whether or not they are in the file."""
        return self._tail.decode("utf-8", "replace")

    def write(self, data: bytes) -> None:
        """Take the next bytes; nothing happens once it is closed."""
        self._tail = (self._tail + data)[-_LOG_TAIL_BYTES:]
        if self._left <= 0 or self._file.closed:
            return
        self._file.write(data[: self._left])
        self._left -= len(data)
        if self._left <= 0:
            self._file.write(b"\n[the rest was not kept: the log had grown too large]\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file; the tail is kept. Twice is fine."""
        self._file.close()
