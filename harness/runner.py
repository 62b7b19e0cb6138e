"""One repeat of one system: programs are started on fresh devices, spoken to, and taken down.

`run_repeat` writes each device's spec, waits until all are ready, sends `go` for one request after
the other, and keeps every event of every rank. It judges nothing but what only it can see: a
deadline that passed, a program that ended early, output that is no event (`Failure`); the rest is
`verdict.py`'s. Read `run_repeat` first.
"""

import queue
import secrets
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from results.schema import RankEvent
from testbed.base import Device, Exit, Inbox, Meters, Output, Process, Testbed, make_inbox
from tpi.events import Event, EventError, parse_event
from tpi.ranks import MASTER_RANK
from tpi.spec import NodeSpec, Request, spec_to_json

# After a failure the other ranks get this long to say what they saw.
_LAST_WORDS_S = 3.0
# A rank says ready, request, counters, end and its tokens; what is far beyond that is a flood.
_SPARE_EVENTS = 16

Watch = Callable[[int, Event], None]


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Longest waits before a repeat counts as hung; all in seconds on the monotonic clock.

    Attributes:
        ready_s: From start until every program is ready.
        token_s: From `go` or a token to the next token.
        end_s: From the last token until every rank has ended the request; also until it exits.
    """

    ready_s: float = 120.0
    token_s: float = 120.0
    end_s: float = 30.0

    def scaled(self, time_scale: float) -> "Deadlines":
        """All of them multiplied."""
        return Deadlines(
            self.ready_s * time_scale, self.token_s * time_scale, self.end_s * time_scale
        )


@dataclass(frozen=True, slots=True)
class Launch:
    """What is started: one program per model folder, rank 0 first."""

    system: str
    program: tuple[str, ...]
    model_dirs: tuple[Path, ...]
    requests: tuple[Request, ...]
    max_tokens: int
    dtype: str = "float32"
    threads: int = 1
    time_scale: float = 1.0
    options: Mapping[str, object] = field(default_factory=dict)
    deadlines: Deadlines = field(default_factory=Deadlines)

    @property
    def world_size(self) -> int:
        """Number of ranks, each on a device of its own."""
        return len(self.model_dirs)


@dataclass(frozen=True, slots=True)
class Failure:
    """What the harness itself saw go wrong; `status` is one of the run record's."""

    status: str
    reason: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """Everything that was seen of one repeat; `events` as they came, the rest by rank."""

    start_ns: tuple[int, ...]
    events: tuple[RankEvent, ...]
    exits: tuple[Exit | None, ...]
    meters: tuple[Meters, ...]
    facts: tuple[dict[str, object], ...]
    failure: Failure | None = None


class _Stop(Exception):  # not an error: it ends the conversation
    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.failure = Failure(status, reason)


def run_repeat(launch: Launch, testbed: Testbed, watch: Watch | None = None) -> Outcome:
    """Run one repeat on fresh devices and take them away again.

    Raises:
        DeviceError: Devices could not be made or a program could not be started.
    """
    try:
        devices = testbed.up(launch.world_size)
        talk = _Conversation(launch, devices, watch)
        failure = talk.hold()
        return Outcome(
            start_ns=tuple(talk.start_ns),
            events=tuple(talk.events),
            exits=tuple(talk.exits),
            meters=tuple(device.meter() for device in devices),
            facts=tuple(device.facts() for device in devices),
            failure=failure,
        )
    finally:
        testbed.down()


def make_specs(launch: Launch, devices: Sequence[Device]) -> list[NodeSpec]:
    """The spec of every rank; only rank 0 learns the prompts."""
    hidden = tuple(replace(request, prompt_ids=None) for request in launch.requests)
    session = secrets.token_hex(16)
    master = f"{devices[0].address}:{devices[0].free_port()}" if launch.world_size > 1 else None
    return [
        NodeSpec(
            system=launch.system,
            rank=rank,
            world_size=launch.world_size,
            session=session,
            bind=device.address,
            master=master,
            model_dir=Path(device.path_of(launch.model_dirs[rank])),
            threads=launch.threads,
            dtype=launch.dtype,
            max_tokens=launch.max_tokens,
            requests=launch.requests if rank == MASTER_RANK else hidden,
            time_scale=launch.time_scale,
            options=launch.options,
        )
        for rank, device in enumerate(devices)
    ]


class _Conversation:
    """The harness's end of all programs' standard input and output."""

    def __init__(self, launch: Launch, devices: Sequence[Device], watch: Watch | None) -> None:
        self._launch = launch
        self._devices = devices
        self._watch = watch
        self._deadlines = launch.deadlines.scaled(launch.time_scale)
        self._inbox: Inbox = make_inbox()
        self._processes: list[Process] = []
        self._num_tokens = sum(r.new_tokens for r in launch.requests)
        self._request: str | None = None
        self._seen: Counter[tuple[int, str, str]] = Counter()
        self._num_events: Counter[int] = Counter()
        self.start_ns: list[int] = []
        self.events: list[RankEvent] = []
        self.exits: list[Exit | None] = [None] * len(devices)

    def hold(self) -> Failure | None:
        """Start the programs, have every request answered, and see them end."""
        failure = None
        specs = make_specs(self._launch, self._devices)
        for device, spec in zip(self._devices, specs, strict=True):
            argv = [device.python, *self._launch.program]
            process = device.run(argv, self._inbox, spec_to_json(spec))
            self._processes.append(process)
            self.start_ns.append(process.start_ns)
        try:
            self._until_all("ready", "", self._deadlines.ready_s)
            for request in self._launch.requests:
                self._serve(request)
            self._until_gone()
        except _Stop as stop:
            failure = stop.failure
            self._hear_last_words()
        self._stop()
        return failure

    def _serve(self, request: Request) -> None:
        self._request = request.id
        self._processes[MASTER_RANK].send(f"go {request.id}")
        for index in range(request.new_tokens):
            what = f"token {index + 1} of {request.new_tokens} of request {request.id}"
            self._until(
                lambda n=index: self._count(MASTER_RANK, "token", request.id) > n,  # type: ignore[misc]
                self._deadlines.token_s,
                what,
            )
        self._until_all("end", request.id, self._deadlines.end_s)
        count = self._count(MASTER_RANK, "token", request.id)
        if count != request.new_tokens:
            raise _Stop(
                "invalid",
                f"request {request.id}: {count} tokens came, {request.new_tokens} were asked for",
            )

    def _until_all(self, name: str, request_id: str, timeout_s: float) -> None:
        ranks = range(self._launch.world_size)
        what = f"{name} of {request_id}" if request_id else name
        self._until(
            lambda: all(self._count(rank, name, request_id) for rank in ranks),
            timeout_s,
            what,
            lambda: [rank for rank in ranks if not self._count(rank, name, request_id)],
        )

    def _until_gone(self) -> None:
        """After the last request every program ends by itself, with status 0."""
        self._request = None
        ranks = range(self._launch.world_size)
        self._until(
            lambda: all(self.exits),
            self._deadlines.end_s,
            "the end of the program",
            lambda: [rank for rank in ranks if self.exits[rank] is None],
        )

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
                output = self._inbox.get(timeout=max(deadline - time.monotonic(), 0))
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
        event = self._parse(output)
        self.events.append(RankEvent(rank, event))
        self._seen[rank, event.name, event.request_id] += 1
        self._num_events[rank] += 1
        if event.name == "error":
            raise _Stop("crashed", f"rank {rank}: {event.fields['message']}")
        if self._num_events[rank] > self._num_tokens + _SPARE_EVENTS * len(self._launch.requests):
            raise _Stop("invalid", f"rank {rank}: more events than its requests can have")
        if self._watch is not None:
            self._watch(rank, event)

    def _parse(self, output: Output) -> Event:
        try:
            if output.truncated:
                raise EventError("a line too long for an event")
            event = parse_event(output.line)
        except EventError as exc:
            raise _Stop("invalid", f"rank {output.device}: {exc}") from exc
        if event.request_id and event.request_id not in self._answerable(output.device):
            raise _Stop(
                "invalid",
                f"rank {output.device}: {event.name} of request {event.request_id!r}, which is not"
                " running",
            )
        if event.name == "token" and output.device != MASTER_RANK:
            raise _Stop("invalid", f"rank {output.device}: a token from a worker")
        return event

    def _answerable(self, rank: int) -> set[str]:
        """Ids that a rank may speak of: the master of what was asked, workers of any request."""
        if rank == MASTER_RANK:
            return set() if self._request is None else {self._request}
        return {request.id for request in self._launch.requests}

    def _may_end(self, rank: int, end: Exit) -> bool:
        """Status 0 after the last request is how programs end; anything else is early."""
        return end.code == 0 and self._count(rank, "end", self._launch.requests[-1].id) > 0

    def _count(self, rank: int, name: str, request_id: str) -> int:
        return self._seen[rank, name, request_id]

    def _hear_last_words(self) -> None:
        """Let the other ranks name what they saw; nothing they say can fail the repeat again."""
        deadline = time.monotonic() + _LAST_WORDS_S * self._launch.time_scale
        while not all(self.exits) and time.monotonic() < deadline:
            try:
                output = self._inbox.get(timeout=max(deadline - time.monotonic(), 0))
            except queue.Empty:
                return
            try:
                self._take(output)
            except _Stop:
                continue

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
