"""The other end of all programs' standard input and output, from their start to their end.

`ProgramSession.run` waits until all are ready, sends `go` for one request after the other, and
keeps every event of every rank until all have ended. What goes wrong becomes a `Failure`: a
deadline that passed, a program that ended early or reported an error, or one whose output broke
the contract (`protocol_checker.py`).
"""

import queue
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from typing import Self

from tpi.program.events import Event
from tpi.program.process import Exit, Inbox, Output, Process, make_inbox
from tpi.program.protocol_checker import Contract, ContractError
from tpi.program.spec import Request
from tpi.ranks import MASTER_RANK

# To write a stack takes milliseconds; a paused program does not write one.
_DUMP_S = 2.0


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Longest waits before a repeat counts as hung; all in seconds on the monotonic clock."""

    ready_s: float = 120.0  # from start until every program is ready
    token_s: float = 120.0  # from `go` or a token to the next token
    end_s: float = 30.0  # from the last token until all have ended the request; also until exit
    last_words_s: float = 3.0  # from a failure until the other ranks have said what they saw of it

    def scaled(self, time_scale: float) -> "Deadlines":
        """All of them multiplied."""
        return Deadlines(*(limit * time_scale for limit in astuple(self)))


@dataclass(frozen=True, slots=True)
class Failure:
    """What was seen to go wrong."""

    status: str  # `timeout`, `crashed` or `oom`
    reason: str  # in one line, opening with the rank
    is_breach: bool = False  # a program broke the contract: then nobody else is to blame
    ended: int | None = None  # the rank whose program ended early, if that is it


class SessionFailed(Exception):
    """A session cannot go on."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.reason)
        self.failure = failure


class ProgramSession:
    """One start of a system; `inbox` is where all of its programs are heard.

    `on_event` is called with every event that keeps the contract. `keep_spans` says that spans are
    wanted, `may_stop` that a request may end before it has all its tokens.
    """

    def __init__(
        self,
        requests: Sequence[Request],
        deadlines: Deadlines,
        on_event: Callable[[Event], None] = lambda _: None,
        *,
        keep_spans: bool = False,
        may_stop: bool = False,
    ) -> None:
        self.requests = requests
        self._deadlines = deadlines
        self._on_event = on_event
        self._contract = Contract(requests, keep_spans=keep_spans, may_stop=may_stop)
        self._processes: list[Process] = []
        self.inbox: Inbox = make_inbox()
        self.events: list[Event] = []
        self.exits: list[Exit | None] = []

    @property
    def start_ns(self) -> tuple[int, ...]:
        """When each program was started."""
        return tuple(process.start_ns for process in self._processes)

    def add(self, process: Process) -> None:
        """Let a program take part; the first is rank 0."""
        self._contract.started(len(self._processes), process.start_ns)
        self._processes.append(process)
        self.exits.append(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def run(self) -> Failure | None:
        """Have every request answered, and see all programs end."""
        failure = None
        try:
            self.wait_ready()
            for request in self.requests:
                self.serve(request)
            self._contract.asked("")
            self._until_gone()
        except SessionFailed as stop:
            failure = stop.failure
            # A breach is its own cause, and one who floods would only go on.
            if not failure.is_breach:
                self._hear_last_words()
            if failure.status == "timeout":
                self._dump_stacks()
        self.stop()
        return failure

    def wait_ready(self) -> None:
        """Wait until all programs are ready.

        Raises:
            SessionFailed: They are not in time.
        """
        self._until_all("ready", "", self._deadlines.ready_s)

    def serve(self, request: Request) -> None:
        """Ask for one request and wait until every rank has ended it.

        Raises:
            SessionFailed: It is not answered as the contract says, or not in time.
        """
        count = self._contract.count
        self._contract.asked(request.id)
        self._processes[MASTER_RANK].send(f"go {request.id}")
        while not count(MASTER_RANK, "end", request.id):
            done = count(MASTER_RANK, "token", request.id)
            if done == request.new_tokens:
                break
            self._until(
                lambda done=done: (  # type: ignore[misc]
                    count(MASTER_RANK, "token", request.id) > done
                    or count(MASTER_RANK, "end", request.id) > 0
                ),
                self._deadlines.token_s,
                f"token {done + 1} of {request.new_tokens} of request {request.id}",
            )
        self._until_all("end", request.id, self._deadlines.end_s)

    def _until_all(self, name: str, request_id: str, timeout_s: float) -> None:
        def missing() -> list[int]:
            ranks = range(len(self._processes))
            return [rank for rank in ranks if not self._contract.count(rank, name, request_id)]

        what = f"{name} of {request_id}" if request_id else name
        self._until(lambda: not missing(), timeout_s, what, missing)

    def _until_gone(self) -> None:
        """After the last request every program ends by itself, with status 0."""

        def missing() -> list[int]:
            return [rank for rank, end in enumerate(self.exits) if end is None]

        what = "the end of the program"
        self._until(lambda: not missing(), self._deadlines.end_s, what, missing)

    def _until(
        self,
        done: Callable[[], bool],
        timeout_s: float,
        what: str,
        missing: Callable[[], list[int]] = lambda: [MASTER_RANK],
    ) -> None:
        deadline = time.monotonic() + timeout_s
        while not done():
            try:
                output = self.inbox.get(timeout=max(deadline - time.monotonic(), 0))
            except queue.Empty:
                ranks = ", ".join(str(rank) for rank in missing())
                reason = f"rank {ranks}: waited {timeout_s:g} s for {what}"
                raise SessionFailed(Failure("timeout", reason)) from None
            self._take(output)

    def _take(self, output: Output) -> None:
        rank = output.device
        if output.exit is not None:
            self.exits[rank] = output.exit
            if not self._may_end(rank, output.exit):
                raise SessionFailed(_early_end(rank, output.exit))
            return
        try:
            event = self._contract.take(rank, output.line, truncated=output.truncated)
        except ContractError as exc:
            raise SessionFailed(Failure("crashed", str(exc), is_breach=True)) from exc
        self.events.append(event)
        if event.name == "error":
            raise SessionFailed(Failure("crashed", f"rank {rank}: {event.fields['message']}"))
        self._on_event(event)

    def _may_end(self, rank: int, end: Exit) -> bool:
        """Status 0 after the last request is how programs end; anything else is early."""
        return end.code == 0 and self._contract.count(rank, "end", self.requests[-1].id) > 0

    def _hear_last_words(self) -> None:
        """Let the other ranks name what they saw; nothing they say can fail the repeat again."""
        deadline = time.monotonic() + self._deadlines.last_words_s
        while not all(self.exits) and time.monotonic() < deadline:
            try:
                self._take(self.inbox.get(timeout=max(deadline - time.monotonic(), 0)))
            except queue.Empty:
                return
            except SessionFailed:
                continue

    def _dump_stacks(self) -> None:
        """Let programs that hang write to their logs where they are; Python's then end."""
        hanging = [p for rank, p in enumerate(self._processes) if self.exits[rank] is None]
        for process in hanging:
            process.signal(signal.SIGABRT)
        deadline = time.monotonic() + _DUMP_S
        for process in hanging:
            process.wait(max(deadline - time.monotonic(), 0))

    def stop(self) -> None:
        """End what still runs: close all inputs, then terminate or kill. Twice is fine."""
        for rank, process in enumerate(self._processes):
            if self.exits[rank] is None:
                process.release()
        for rank, process in enumerate(self._processes):
            self.exits[rank] = self.exits[rank] or process.stop()

    def kill(self) -> None:
        """Kill what still runs, without waiting; may be called from a signal handler."""
        for process in self._processes:
            process.signal(signal.SIGKILL)


def _early_end(rank: int, end: Exit) -> Failure:
    log = end.log_tail.strip().splitlines()
    last = f": {log[-1][:200]}" if log else ""
    if end.oom:
        return Failure("oom", f"rank {rank}: killed, out of memory{last}", ended=rank)
    how = f"signal {-end.code}" if end.code < 0 else f"status {end.code}"
    return Failure("crashed", f"rank {rank}: ended early with {how}{last}", ended=rank)
