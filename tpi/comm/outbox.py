"""The sending half of a channel: whole frames, never split by a heartbeat.

Two threads send: the one that computes, and `Heartbeat`. The one that holds the lock hands the
kernel a whole frame or keeps its rest here. No frame begins before that rest is gone.
"""

import contextlib
import socket
import threading
from collections.abc import Callable, Sequence

_FLAGS = getattr(socket, "MSG_NOSIGNAL", 0)


class Outbox:
    """Bytes on their way into one non-blocking socket; raises OSError as the socket does."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._lock = threading.Lock()
        self._rest: list[memoryview] = []
        self._frame_bytes = 0

    def send(self, parts: Sequence[bytes | memoryview]) -> bool:
        """Begin a frame, from where its parts lie; True if the kernel took all of it at once."""
        with self._lock:
            self._frame_bytes = sum(map(len, parts))
            if self._rest:
                self._rest += [memoryview(part) for part in parts]
                return self._flush()
            return self._put(parts)

    def flush(self) -> bool:
        """Give the kernel more of what waits; True if nothing is left."""
        with self._lock:
            return self._flush()

    def beat(self, heartbeat: bytes) -> None:
        """Send a heartbeat, unless a frame is on its way: that shows life as well.

        For the heartbeat thread: never waits, and leaves errors to the thread that waits for this
        peer, which learns the same from its own calls.
        """
        if not self._lock.acquire(blocking=False):
            return
        try:
            with contextlib.suppress(OSError):
                if self._rest:
                    self._flush()
                else:
                    self._put([heartbeat])
        finally:
            self._lock.release()

    def progress_text(self) -> str:
        """How far the frame under way has come: "n of m bytes"; empty if there is none."""
        left = sum(map(len, self._rest))
        return f"{max(0, self._frame_bytes - left)} of {self._frame_bytes} bytes" if left else ""

    def _flush(self) -> bool:
        if not self._rest:
            return True
        parts, self._rest = self._rest, []
        return self._put(parts)

    def _put(self, parts: Sequence[bytes | memoryview]) -> bool:
        try:
            taken = self._sock.sendmsg(parts, (), _FLAGS)
        except (BlockingIOError, InterruptedError):
            taken = 0
        for number, part in enumerate(parts):
            if taken < len(part):
                rest = [memoryview(left) for left in parts[number:]]
                self._rest = [rest[0][taken:], *rest[1:]]
                return False
            taken -= len(part)
        return True


class Heartbeat:
    """Sends one heartbeat frame a period to every peer; never waits for any of them.

    It takes some ten microseconds a second, and the thread that computes inside torch or NumPy has
    given up the interpreter's lock, so nothing is disturbed. `make_frame` gives the frame with the
    progress of the moment.
    """

    def __init__(
        self, outboxes: Sequence[Outbox], make_frame: Callable[[], bytes], period_s: float
    ) -> None:
        self._outboxes = tuple(outboxes)
        self._make_frame = make_frame
        self._period_s = period_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Start the thread, if there is anybody to tell."""
        if self._outboxes:
            self._thread.start()

    def stop(self) -> None:
        """End the thread and wait for it; twice is fine."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._period_s):
            frame = self._make_frame()
            for outbox in self._outboxes:
                outbox.beat(frame)
