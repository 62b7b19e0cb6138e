"""Repeats and records to test with: two ranks, three tokens, round numbers."""

from typing import Any

from msgspec import convert
from msgspec.structs import replace

from results.records.run_config import RunConfig
from results.records.schema import PeakMemory, Repeat, RunEnvironment
from results.records.testbed_facts import RunCalibration
from tpi.program.events import Event

MS = 1_000_000
MIB = 1 << 20
COUNTERS = {
    "disk_bytes": 900,
    "disk_bytes_decode": 600,
    "wire_bytes_sent": 90,
    "wire_bytes_sent_decode": 60,
    "messages_sent": 30,
    "messages_sent_decode": 20,
    "compute_s": 0.2,
    "allreduce_s": 0.1,
    "wait_weights_s": 0.05,
    "rss_hwm": 300 * MIB,
}


def token(t_ns: int, token_id: int, request_id: str = "m") -> Event:
    return Event("token", t_ns, {"id": request_id, "token": token_id}, 0)


def rank_events(rank: int, ready_ns: int, end_ns: int, **counters: Any) -> list[Event]:
    return [
        Event("ready", ready_ns, {"verify_s": 0.1}, rank),
        Event("counters", end_ns, {"id": "m", "rank": rank, **COUNTERS, **counters}, rank),
        Event("end", end_ns, {"id": "m"}, rank),
    ]


def make_repeat(index: int = 0, gap_ms: int = 100, status: str = "ok", **changes: Any) -> Repeat:
    """Start at 1 s, ready at 3 s, go at 4 s, first token 300 ms later, two more."""
    first_ns, gap_ns = 4_300 * MS, gap_ms * MS
    end_ns = first_ns + 2 * gap_ns + MS
    events = [
        *rank_events(0, 2_500 * MS, end_ns),
        *rank_events(1, 3_000 * MS, end_ns, rss_hwm=100 * MIB),
        Event("request", 3_100 * MS, {"id": "w"}, 0),
        token(3_200 * MS, 99, "w"),
        Event("request", 4_000 * MS, {"id": "m"}, 0),
        *(token(first_ns + i * gap_ns, 7 + i) for i in range(3)),
    ]
    values: dict[str, Any] = {
        "index": index,
        "request_id": "m",
        "status": status,
        "reason": "" if status == "ok" else "rank 1: exit 9",
        "start_ns": (1_000 * MS, 1_010 * MS),
        "peak_memory": PeakMemory((200 * MIB, 210 * MIB), (150 * MIB, 140 * MIB), (None, None)),
        "events": tuple(events),
    }
    return Repeat(**(values | changes))


def spans(rank: int, rows: list[list[Any]], request_id: str = "m", **more: Any) -> Event:
    """A `spans` event; times of the rows are milliseconds since the request of `make_repeat`."""
    stamped = [
        [name, round((4_000 + start) * MS), round((4_000 + end) * MS), label]
        for name, start, end, label in rows
    ]
    fields = {"id": request_id, "rank": rank, "spans": stamped, **more}
    return Event("spans", 5_000 * MS, fields, rank)


def make_traced(*said: Event, **changes: Any) -> Repeat:
    """`make_repeat` with these events more."""
    repeat = make_repeat(**changes)
    return replace(repeat, events=(*repeat.events, *said))


def as_config(parts: dict[str, Any]) -> RunConfig:
    """A configuration of which only some is known."""
    return convert(parts, RunConfig)


def as_calibration(parts: dict[str, Any]) -> RunCalibration:
    return convert(parts, RunCalibration)


def as_environment(parts: dict[str, Any]) -> RunEnvironment:
    return convert(parts, RunEnvironment)


def steps_of(stays):
    """(time, labels of what is in memory) after each change."""
    times = sorted({t for s in stays for t in (s.start_s, s.end_s) if t is not None})
    return [
        (t, tuple(s.label for s in stays if s.start_s <= t and (s.end_s is None or t < s.end_s)))
        for t in times
    ]
