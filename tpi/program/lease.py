"""What ends a rank from outside: a signal, a lost lease, no memory. Each gets its name here.

`interruptible` makes one exception of a signal; `Lease` ends a rank whose starter is gone;
`out_of_memory_named` turns every form of "no memory" into one error.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType as PythonFrame

from tpi.errors import EXIT_INTERRUPTED, ResourceError


class InterruptedByUser(BaseException):
    """Ctrl-C, SIGTERM, or whoever started us is gone; not an error of ours or of a peer."""


@contextmanager
def interruptible() -> Iterator[None]:
    """Signals raise once, in the main thread; Ctrl-C or SIGTERM again ends the process at once.

    SIGUSR1 is our own: the lease was lost. Whoever drops it often sends SIGTERM in the same
    breath, which is no second wish.
    """
    seen: list[int] = []

    def handle(number: int, _frame: PythonFrame | None) -> None:
        seen.append(number)
        if len([s for s in seen if s != signal.SIGUSR1]) > 1:
            os._exit(EXIT_INTERRUPTED)
        if len(seen) == 1:
            raise InterruptedByUser(signal.Signals(number).name)

    names = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    old = {name: signal.signal(name, handle) for name in names}
    try:
        yield
    finally:
        for name, handler in old.items():
            signal.signal(name, signal.SIG_IGN if name == signal.SIGUSR1 else handler)


@contextmanager
def out_of_memory_named(rank: int) -> Iterator[None]:
    """Give every form of "no memory" its name, before peers and harness hear of it."""
    try:
        yield
    except MemoryError as exc:
        raise ResourceError(f"rank {rank} is out of memory: {exc}") from exc
    except RuntimeError as exc:
        if "allocate memory" not in str(exc):  # the words of torch's CPU allocator
            raise
        raise ResourceError(f"rank {rank} is out of memory: {str(exc)[:200]}") from exc


class Lease:
    """Ends this rank when whoever started it is gone: its standard input has closed.

    A rank that is idle ends by itself (the master has no more requests, the workers hear of it),
    and gets a moment to do so; one that is at work is interrupted at once.
    """

    def __init__(self, grace_s: float) -> None:
        self._grace_s = grace_s
        self.busy = True

    def lost(self) -> None:
        """Called by the thread that reads standard input."""
        delay_s = 0.0 if self.busy else self._grace_s
        timer = threading.Timer(delay_s, os.kill, (os.getpid(), signal.SIGUSR1))
        timer.daemon = True
        timer.start()
