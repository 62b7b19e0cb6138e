"""The harness's end of all programs' standard input and output, through one repeat.

`ProgramSession.hold` waits until all are ready, sends `go` for one request after the other, and
keeps every event of every rank until all have ended. What goes wrong becomes a `Failure`: a
deadline that passed, a program that ended early or reported an error, or one whose output broke
the contract (`harness/run/protocol_checker.py`). Read `hold` first.
"""

import queue
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from harness.run.protocol_checker import Contract, ContractError
from results.records.schema import RankEvent
from testbed.base import Device, Exit, Inbox, Output, Process, make_inbox
from tpi.program.events import Event
from tpi.program.spec import Request
from tpi.ranks import MASTER_RANK

# To write a stack takes milliseconds; a paused program does not write one.
_DUMP_S = 2.0


class Watch(Protocol):
    """Whoever wants to see a repeat while it runs; called from the harness's own thread."""

    def started(self, devices: Sequence[Device]) -> None:
        """All programs were started; the devices' meters may be read from any thread."""

    def event(self, rank: int, event: Event) -> None:
        """A rank said something that keeps the contract."""


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Longest waits before a repeat counts as hung; all in seconds on the monotonic clock.

    Attributes:
        ready_s: From start until every program is ready.
        token_s: From `go` or a token to the next token.
        end_s: From the last token until every rank has ended the request; also until it exits.
        last_words_s: From a failure until the other ranks have said what they saw of it.
    """

    ready_s: float = 120.0
    token_s: float = 120.0
    end_s: float = 30.0
    last_words_s: float = 3.0

    def scaled(self, time_scale: float) -> "Deadlines":
        """All of them multiplied."""
        return Deadlines(
            self.ready_s * time_scale,
            self.token_s * time_scale,
            self.end_s * time_scale,
            self.last_words_s * time_scale,
        )


@dataclass(frozen=True, slots=True)
class Failure:
    """What the harness itself saw go wrong.

    Attributes:
        status: One of the run record's.
        reason: In one line, opening with the rank.
        is_breach: Whether a program broke the contract: then nobody else is to blame.
    """

    status: str
    reason: str
    is_breach: bool = False


class _Stop(Exception):  # not an error: it ends the conversation
    def __init__(self, status: str, reason: str, *, is_breach: bool = False) -> None:
        super().__init__(reason)
        self.failure = Failure(status, reason, is_breach)


class ProgramSession:
    """One repeat's; `inbox` is where all of its programs are heard."""

    def __init__(
        self,
        requests: Sequence[Request],
        deadlines: Deadlines,
        watch: Watch | None = None,
        *,
        keep_spans: bool = False,
    ) -> None:
        self._requests = requests
        self._deadlines = deadlines
        self._watch = watch
        self._contract = Contract(requests, keep_spans=keep_spans)
        self._processes: list[Process] = []
        self.inbox: Inbox = make_inbox()
        self.events: list[RankEvent] = []
        self.exits: list[Exit | None] = []

    @property
    def start_ns(self) -> tuple[int, ...]:
        """When each program was started."""
        return tuple(process.start_ns for process in self._processes)

    def join(self, process: Process) -> None:
        """Let a program take part; the first is rank 0."""
        self._contract.started(len(self._processes), process.start_ns)
        self._processes.append(process)
        self.exits.append(None)

    def hold(self) -> Failure | None:
        """Have every request answered, and see all programs end."""
        failure = None
        try:
            self._until_all("ready", "", self._deadlines.ready_s)
            for request in self._requests:
                self._serve(request)
            self._contract.asked("")
            self._until_gone()
        except _Stop as stop:
            failure = stop.failure
            # A breach is its own cause, and one who floods would only go on.
            if not failure.is_breach:
                self._hear_last_words()
            if failure.status == "timeout":
                self._dump_stacks()
        self._stop()
        return failure

    def _serve(self, request: Request) -> None:
        self._contract.asked(request.id)
        self._processes[MASTER_RANK].send(f"go {request.id}")
        for index in range(request.new_tokens):
            what = f"token {index + 1} of {request.new_tokens} of request {request.id}"
            self._until(
                lambda n=index: self._contract.count(MASTER_RANK, "token", request.id) > n,  # type: ignore[misc]
                self._deadlines.token_s,
                what,
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
                raise _Stop("timeout", f"rank {ranks}: waited {timeout_s:g} s for {what}") from None
            self._take(output)

    def _take(self, output: Output) -> None:
        rank = output.device
        if output.exit is not None:
            self.exits[rank] = output.exit
            if not self._may_end(rank, output.exit):
                raise _Stop(*_describe_exit(rank, output.exit))
            return
        try:
            event = self._contract.take(rank, output.line, truncated=output.truncated)
        except ContractError as exc:
            raise _Stop("crashed", str(exc), is_breach=True) from exc
        self.events.append(RankEvent(rank, event))
        if event.name == "error":
            raise _Stop("crashed", f"rank {rank}: {event.fields['message']}")
        if self._watch is not None:
            self._watch.event(rank, event)

    def _may_end(self, rank: int, end: Exit) -> bool:
        """Status 0 after the last request is how programs end; anything else is early."""
        return end.code == 0 and self._contract.count(rank, "end", self._requests[-1].id) > 0

    def _hear_last_words(self) -> None:
        """Let the other ranks name what they saw; nothing they say can fail the repeat again."""
        deadline = time.monotonic() + self._deadlines.last_words_s
        while not all(self.exits) and time.monotonic() < deadline:
            try:
                self._take(self.inbox.get(timeout=max(deadline - time.monotonic(), 0)))
            except queue.Empty:
                return
            except _Stop:
                continue

    def _dump_stacks(self) -> None:
        """Let programs that hang write to their logs where they are; Python's then end."""
        hanging = [p for rank, p in enumerate(self._processes) if self.exits[rank] is None]
        for process in hanging:
            process.signal(signal.SIGABRT)
        deadline = time.monotonic() + _DUMP_S
        for process in hanging:
            process.wait(max(deadline - time.monotonic(), 0))

    def _stop(self) -> None:
        for rank, process in enumerate(self._processes):
            if self.exits[rank] is None:
                process.release()
        for rank, process in enumerate(self._processes):
            self.exits[rank] = self.exits[rank] or process.stop()


def _describe_exit(rank: int, end: Exit) -> tuple[str, str]:
    log = end.log_tail.strip().splitlines()
    last = f": {log[-1][:200]}" if log else ""
    if end.oom:
        return "oom", f"rank {rank}: killed, out of memory{last}"
    how = f"signal {-end.code}" if end.code < 0 else f"status {end.code}"
    return "crashed", f"rank {rank}: ended early with {how}{last}"
