"""What a program says on standard output and hears on standard input.

One JSON object a line, each with `event` and `t_ns` from CLOCK_MONOTONIC (one clock for all
processes and containers of a host):

    {"event": "ready", ...facts}                      weights are usable, requests may come
    {"event": "request", "id": "r0"}                  stamped when `go r0` was read (rank 0)
    {"event": "token", "id": "r0", "token": 123}      stamped when the id was known (rank 0)
    {"event": "counters", "id": "r0", "rank": 0, ...numbers}             every rank
    {"event": "spans", "id": "r0", "rank": 0, "spans": [...]}            every rank, if asked for
    {"event": "end", "id": "r0"}                                         every rank
    {"event": "error", "code": "peer_lost", "message": "..."}            then exit

A request has as many `spans` events as its spans need (`spans.py`); the last one says `"cut": true`
if there were more than are kept. `EventWriter` and `CommandReader` are the program's side,
`parse_event` the harness's. Standard input is the lease: when it closes, whoever started the
program is gone and it must end.
"""

import json
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Final, Self

import msgspec
from msgspec import Meta, Struct

from tpi.decode import convert, shown
from tpi.errors import ConfigError, TpiError
from tpi.trace import Row, Rows, rows_by_line

MAX_LINE_BYTES: Final = 64 << 10
_MAX_COMMAND_BYTES: Final = 256


class EventError(TpiError):
    """A line on a program's standard output that is not an event."""

    code = "event"


@dataclass(frozen=True, slots=True)
class Event:
    """One line of a program, checked."""

    name: str
    t_ns: int
    fields: Mapping[str, object] = field(default_factory=dict)  # all but `event` and `t_ns`
    rank: int = 0  # whose program wrote it

    @property
    def request_id(self) -> str:
        """Id of the request it belongs to; empty for `ready` and `error`."""
        return str(self.fields.get("id", ""))

    @property
    def token(self) -> int:
        """Token id of a `token` event."""
        return int(self.number("token"))

    def number(self, name: str, default: float = 0) -> float:
        """A numeric field; `default` where it is absent or null."""
        value = self.fields.get(name)
        return value if isinstance(value, int | float) else default


class EventWriter:
    """Writes events, each as one whole line, from any thread."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock = threading.Lock()

    @classmethod
    def claim_stdout(cls) -> Self:
        """Keep standard output for events: whatever else prints from now on goes to stderr."""
        sys.stdout.flush()
        fd = os.dup(1)
        os.dup2(2, 1)
        return cls(fd)

    def emit(self, event: str, *, t_ns: int | None = None, **fields: object) -> int:
        """Write one event and return its stamp; `t_ns` is now unless given.

        Raises:
            BrokenPipeError: The reader is gone.
        """
        stamp = time.monotonic_ns() if t_ns is None else t_ns
        line = json.dumps({"event": event, "t_ns": stamp, **fields}, allow_nan=False) + "\n"
        data = memoryview(line.encode())
        with self._lock:
            while data:
                data = data[os.write(self._fd, data) :]
        return stamp

    def error(self, error: BaseException) -> None:
        """Write an `error` event; an exception that is not ours is a defect of the program."""
        code = error.code if isinstance(error, TpiError) else "internal"
        text = str(error) if isinstance(error, TpiError) else f"{type(error).__name__}: {error}"
        self.emit("error", code=code, message=text[: MAX_LINE_BYTES // 8])

    def spans(self, request_id: str, rank: int, rows: Iterable[Row], *, cut: bool = False) -> None:
        """Write `spans` events of these rows; `cut` says that there were more."""
        for some in rows_by_line(rows):
            self.emit("spans", id=request_id, rank=rank, spans=some)
        if cut:
            self.emit("spans", id=request_id, rank=rank, spans=[], cut=True)


@dataclass(frozen=True, slots=True)
class Go:
    """The command `go ID`, and when it was read."""

    request_id: str
    t_ns: int


class CommandReader:
    """Reads commands from a file descriptor in a thread of its own, and notices its end.

    `on_lease_lost` is called once, from that thread, when the input closes. Raw `os.read`, since a
    thread that waits inside `sys.stdin` would hold its lock while the interpreter shuts down.
    """

    def __init__(self, on_lease_lost: Callable[[], None] | None = None, fd: int = 0) -> None:
        self._fd = fd
        self._on_lease_lost = on_lease_lost
        self._commands: queue.SimpleQueue[Go | TpiError | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._read, name="commands", daemon=True)

    def start(self) -> Self:
        """Start the reading thread."""
        self._thread.start()
        return self

    def next(self, timeout_s: float | None = None) -> Go | None:
        """Wait for the next command; None once the input has closed.

        Raises:
            ConfigError: A line that is no command.
            TimeoutError: Nothing came for `timeout_s`.
        """
        try:
            command = self._commands.get(timeout=timeout_s)
        except queue.Empty:
            raise TimeoutError(f"no command for {timeout_s} s") from None
        if command is None:
            self._commands.put(None)
        if isinstance(command, TpiError):
            raise command
        return command

    def _read(self) -> None:
        pending = b""
        while data := self._read_some():
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                self._commands.put(_parse_command(line))
            if len(pending) > _MAX_COMMAND_BYTES:
                self._commands.put(_parse_command(pending))
                pending = b""
        self._commands.put(None)
        if self._on_lease_lost is not None:
            self._on_lease_lost()

    def _read_some(self) -> bytes:
        try:
            return os.read(self._fd, 4096)
        except OSError:
            return b""


def _parse_command(line: bytes) -> Go | TpiError:
    now_ns = time.monotonic_ns()
    words = line[:_MAX_COMMAND_BYTES].decode("utf-8", "replace").split()
    if len(words) == 2 and words[0] == "go":
        return Go(words[1], now_ns)
    return ConfigError(f"unknown command on standard input: {line[:60]!r} (known: go ID)")


def parse_event(line: bytes | str, rank: int = 0) -> Event:
    """Check one line of the standard output of that rank's program.

    Raises:
        EventError: Too long, not JSON, unknown, or a field is missing or of the wrong type.
    """
    if len(line) > MAX_LINE_BYTES:
        raise EventError(f"line of {len(line)} bytes on standard output, at most {MAX_LINE_BYTES}")
    try:
        raw = msgspec.json.decode(line)
    except (ValueError, RecursionError) as exc:
        text = line.decode("utf-8", "replace") if isinstance(line, bytes) else line
        raise EventError(f"not an event: {shown(text)}") from exc
    return check_event(raw, rank)


def check_event(raw: object, rank: int = 0) -> Event:
    """Make an event of a decoded line.

    Raises:
        EventError: Unknown, or a field is missing or of the wrong type.
    """
    name = raw.get("event") if isinstance(raw, dict) else None
    if not isinstance(raw, dict) or not isinstance(name, str) or name not in _EVENTS:
        raise EventError(f"not an event: {shown(raw)}")
    checked = convert(raw, _EVENTS[name], f"event {name}", EventError)
    if isinstance(checked, _SpansEvent) and any(start > end for _, start, end, _ in checked.spans):
        raise EventError("event spans: spans must end after they begin")
    fields = {key: value for key, value in raw.items() if key not in ("event", "t_ns")}
    return Event(name, checked.t_ns, fields, rank)


class _AnyEvent(Struct):
    """What every event has; facts and numbers beside what is named here are free."""

    t_ns: Annotated[int, Meta(ge=0)]


class _RequestEvent(_AnyEvent):
    id: str


class _TokenEvent(_RequestEvent):
    token: Annotated[int, Meta(ge=0)]


class _RankEvent(_RequestEvent):
    rank: Annotated[int, Meta(ge=0)]


class _SpansEvent(_RankEvent):
    spans: Rows


class _ErrorEvent(_AnyEvent):
    code: str
    message: str


_EVENTS: Final[Mapping[str, type[_AnyEvent]]] = {
    "ready": _AnyEvent,
    "request": _RequestEvent,
    "token": _TokenEvent,
    "counters": _RankEvent,
    "spans": _SpansEvent,
    "end": _RequestEvent,
    "error": _ErrorEvent,
}
