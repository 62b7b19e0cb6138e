"""What ends a program from outside: a signal, a lost lease, no memory.

A program with a mesh ends by an exception, so that it can tell its peers. One that is deep inside a
library's call cannot be reached so: it ends at once.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType as PythonFrame

from tpi.errors import EXIT_INTERRUPTED, ResourceError


class InterruptedByUser(BaseException):
    """Ctrl-C, SIGTERM, or whoever started us is gone; not an error of ours or of a peer."""


@contextmanager
def ends_by_exception() -> Iterator[Callable[[], None]]:
    """Signals raise once, in the main thread; Ctrl-C or SIGTERM again ends the process at once.

    Yields what a thread calls to end the program: it sends SIGUSR1, our own. Whoever drops a lease
    often sends SIGTERM in the same breath, which is no second wish.
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
        yield lambda: os.kill(os.getpid(), signal.SIGUSR1)
    finally:
        for name, handler in old.items():
            signal.signal(name, signal.SIG_IGN if name == signal.SIGUSR1 else handler)


@contextmanager
def ends_at_once() -> Iterator[Callable[[], None]]:
    """SIGTERM kills, even inside a long call; yields what a thread calls to end the process."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield lambda: os._exit(EXIT_INTERRUPTED)


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
    """Ends this program when whoever started it is gone: its standard input has closed.

    A program at work is ended at once. An idle one ends by itself (the master has no more requests,
    the workers hear of it), and gets a moment to do so.
    """

    def __init__(self, grace_s: float, end: Callable[[], None]) -> None:
        self._grace_s = grace_s
        self._end = end
        self._lost = threading.Event()
        self._is_busy = False

    @contextmanager
    def busy(self) -> Iterator[None]:
        """While the body runs, losing the lease ends the program at once."""
        self._is_busy = True
        try:
            if self._lost.is_set():
                raise InterruptedByUser("standard input has closed")
            yield
        finally:
            # After an error too: its event and its exit status matter more than the lease.
            self._is_busy = False

    def lost(self) -> None:
        """Called by the thread that reads standard input, when that closes."""
        self._lost.set()
        if self._is_busy:
            self._end()
            return
        timer = threading.Timer(self._grace_s, self._end)
        timer.daemon = True
        timer.start()
