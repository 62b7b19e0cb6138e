"""The thread that says "I live" to every peer while the other one computes or waits."""

import threading
from collections.abc import Callable, Sequence

from tpi.comm.outbox import Outbox


class Heartbeat:
    """Sends one heartbeat frame a period to every peer; never waits for any of them.

    It takes some ten microseconds a second, and the thread that computes inside torch or NumPy has
    given up the interpreter's lock, so that nothing is disturbed.

    Args:
        outboxes: Whom to tell.
        make_frame: Gives the frame, with the progress of the moment.
        period_s: Between two heartbeats.
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
