"""`LocalNodes`: N `tpi node` processes of this machine, and their events as one stream.

Closing the nodes' standard input ends them, however we end. A rank that dies without a word is
named with its status and what the others say of it. `Interrupts` is for whoever runs them.
"""

import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, Any, Self

from tpi.errors import PeerLostError, TpiError, error_from_code
from tpi.program.events import Event, EventError, parse_event
from tpi.program.spec import NodeSpec, dump_spec

_EXIT_TIMEOUT_S = 4.0
_LAST_WORDS_S = 3.0  # how long others may take to say why a rank is gone
_Handler = Callable[[int, FrameType | None], Any] | int | None


class LocalNodes:
    """N `tpi node` processes on loopback and their merged events.

    Attributes:
        ended: The ranks that have sent `end`.
    """

    def __init__(self, specs: Sequence[NodeSpec], folder: Path) -> None:
        self._specs = specs
        self._folder = folder
        self._events: queue.SimpleQueue[tuple[int, Event | TpiError | None]] = queue.SimpleQueue()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._readers: list[threading.Thread] = []
        self._closed: set[int] = set()
        self.ended: set[int] = set()

    def __enter__(self) -> Self:
        try:
            for spec in self._specs:
                self._start(spec)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def _start(self, spec: NodeSpec) -> None:
        path = self._folder / f"spec-{spec.rank}.json"
        dump_spec(spec, path)
        with (self._folder / f"rank-{spec.rank}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "tpi.cli", "node", str(path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # Ctrl-C comes to us alone; we end them in order
            )
        if process.stdout is None:
            raise RuntimeError("a pipe was asked for")
        reader = threading.Thread(
            target=self._read, args=(spec.rank, process.stdout), name="events", daemon=True
        )
        reader.start()
        self._processes.append(process)
        self._readers.append(reader)

    def _read(self, rank: int, stream: IO[bytes]) -> None:
        for line in stream:
            try:
                self._events.put((rank, parse_event(line)))
            except EventError as exc:
                self._events.put((rank, exc))
        self._events.put((rank, None))

    def go(self, request_id: str) -> None:
        """Start a request on the master."""
        stdin = self._processes[0].stdin
        if stdin is None:
            raise RuntimeError("a pipe was asked for")
        with suppress(BrokenPipeError):  # it is gone: the next event says why
            stdin.write(f"go {request_id}\n".encode())
            stdin.flush()

    def next_event(self, timeout_s: float) -> tuple[int, Event]:
        """Wait for the next event of any rank.

        Raises:
            TpiError: what a rank reported, or nothing came in time.
            PeerLostError: a rank ended before its last event, and none named another cause.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            rank, event = self._next(deadline, timeout_s)
            if event is not None:
                if event.name == "end":
                    self.ended.add(rank)
                return rank, event
            if rank not in self.ended:  # one that has said `end` may leave before the others do
                raise self._cause(rank)

    def _next(self, deadline: float, timeout_s: float) -> tuple[int, Event | None]:
        """The next event, or None where those of a rank are over; raises reported errors."""
        try:
            rank, event = self._events.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            raise TpiError(
                f"no event from any of {len(self._specs)} nodes for {timeout_s:g} s"
            ) from None
        if isinstance(event, TpiError):
            raise event
        if event is None:
            self._closed.add(rank)
        elif event.name == "error":
            fields = event.fields
            message = str(fields["message"])
            named = message if message.startswith("rank ") else f"rank {rank}: {message}"
            raise error_from_code(str(fields["code"]), named)
        return rank, event

    def _cause(self, rank: int) -> TpiError:
        """Why a rank left without a word: what others report of it, or what the system says."""
        deadline = time.monotonic() + _LAST_WORDS_S
        reported: TpiError = PeerLostError(f"rank {rank} is gone")
        while len(self._closed) < len(self._specs) and time.monotonic() < deadline:
            try:
                self._next(deadline, _LAST_WORDS_S)
            except TpiError as exc:
                if exc.code != TpiError.code:  # not the end of our patience
                    reported = exc
                    break
        return type(reported)(f"{reported}; {self._how_it_ended(rank)}")

    def _how_it_ended(self, rank: int) -> str:
        try:
            status = self._processes[rank].wait(_LAST_WORDS_S)
        except subprocess.TimeoutExpired:
            how = "closed its output and still runs"
        else:
            how = f"ended with {_status_name(status)} and without a word"
        log = (self._folder / f"rank-{rank}.log").read_text(errors="replace").strip()
        last = log.splitlines()[-1] if log else "nothing"
        return f"rank {rank} {how}; last in its log: {last}"

    def collect(self, name: str, timeout_s: float) -> dict[int, Event]:
        """Wait until every rank has sent one event of this name; others are dropped."""
        found: dict[int, Event] = {}
        deadline = time.monotonic() + timeout_s
        while len(found) < len(self._specs):
            rank, event = self.next_event(max(0.0, deadline - time.monotonic()))
            if event.name == name:
                found[rank] = event
        return found

    def close(self) -> None:
        """End all nodes: close their input, wait, then kill; may be called twice.

        An idle node ends by itself then, and one at work is interrupted by its lost lease.
        """
        try:
            self._await_exits()
        finally:
            self.kill()
            for process, reader in zip(self._processes, self._readers, strict=True):
                process.wait()
                reader.join(_EXIT_TIMEOUT_S)  # at its end now; only then may its pipe be closed
                if process.stdout is not None:
                    process.stdout.close()
            self._processes.clear()
            self._readers.clear()

    def kill(self) -> None:
        """Kill what still runs, without waiting; may be called from a signal handler."""
        for process in self._processes:
            process.kill()

    def _await_exits(self) -> None:
        for process in self._processes:
            if process.stdin is not None:
                with suppress(OSError):  # a broken pipe means that it is gone already
                    process.stdin.close()
        deadline = time.monotonic() + _EXIT_TIMEOUT_S
        for process in self._processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))


def _status_name(status: int) -> str:
    """An exit status as people say it: "status 3", "signal SIGKILL"."""
    if status >= 0:
        return f"status {status}"
    with suppress(ValueError):
        return f"signal {signal.Signals(-status).name}"
    return f"signal {-status}"


class Interrupts:
    """The first Ctrl-C or SIGTERM raises KeyboardInterrupt; a later one kills the nodes at once.

    A later one raises nothing, so that nothing stops the clean-up that the first has begun.
    """

    def __init__(self) -> None:
        self.hurry: Callable[[], None] = lambda: None
        self._seen = False
        self._old: dict[signal.Signals, _Handler] = {}

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        if self._seen:
            self.hurry()
        else:
            self._seen = True
            raise KeyboardInterrupt

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # the only one that may
            for name in (signal.SIGINT, signal.SIGTERM):
                self._old[name] = signal.signal(name, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        for name, handler in self._old.items():
            signal.signal(name, handler)
