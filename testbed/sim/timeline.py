"""From clocks and counters to the events that the real programs would have written.

A system's schedule leaves a `Mark` at the start of the measured request and after each token;
`to_events` turns them into events as `tpi/program/host.py` writes them: `ready` of every rank,
`request` and `token` of rank 0, `counters` and `end` of every rank, and `spans` if kept.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from testbed.sim.devices import Span, Tally
from testbed.sim.network import Ints
from tpi.program.events import Event
from tpi.ranks import MASTER_RANK

REQUEST_ID = "r0"
_SPANS_PER_EVENT = 500
_RankEvent = tuple[int, Event]


@dataclass(frozen=True, slots=True)
class Mark:
    """All ranks at one moment: clocks, times spent, messages and their bytes."""

    now: Ints
    tally: Tally
    messages: Ints
    num_bytes: Ints


@dataclass(frozen=True, slots=True)
class Timeline:
    """One start of a system with one request.

    Attributes:
        ready: When each rank was ready.
        go: When the request came.
        first: Before the request.
        tokens: After each token; there is at least one.
        rss_hwm: Peak memory of each rank.
        spans: Of the request.
        prefill_passes: Chunks of the prompt; each token behind the first takes one pass more.
        ready_fields: Of each rank's `ready`, about its window, if it has one.
    """

    ready: Ints
    go: int
    first: Mark
    tokens: Sequence[Mark]
    rss_hwm: Sequence[int]
    spans: Sequence[Span] = ()
    prefill_passes: int = 1
    ready_fields: Sequence[Mapping[str, object]] = ()


def to_events(timeline: Timeline) -> tuple[_RankEvent, ...]:
    """All events, in the order of their times."""
    ranks = range(len(timeline.ready))
    fields = timeline.ready_fields or [{}] * len(ranks)
    found: list[_RankEvent] = [
        (rank, Event("ready", int(timeline.ready[rank]), {"verify_s": 0.0, **fields[rank]}))
        for rank in ranks
    ]
    found.append((MASTER_RANK, Event("request", timeline.go, {"id": REQUEST_ID})))
    for mark in timeline.tokens:
        token = Event("token", int(mark.now[MASTER_RANK]), {"id": REQUEST_ID, "token": 0})
        found.append((MASTER_RANK, token))
    last = timeline.tokens[-1].now
    for rank in ranks:
        end_ns = int(max(last[rank], last[MASTER_RANK]))
        found += [(rank, event) for event in _span_events(timeline, rank, end_ns)]
        found.append((rank, Event("counters", end_ns, _counters(timeline, rank))))
        found.append((rank, Event("end", end_ns, {"id": REQUEST_ID})))
    return tuple(sorted(found, key=lambda item: item[1].t_ns))


def _counters(timeline: Timeline, rank: int) -> dict[str, object]:
    first, prefill, last = timeline.first, timeline.tokens[0], timeline.tokens[-1]

    def since(begin: Mark, name: str) -> int:
        return int(getattr(last, name)[rank] - getattr(begin, name)[rank])

    def spent(begin: Mark, name: str) -> int:
        return int(getattr(last.tally, name)[rank] - getattr(begin.tally, name)[rank])

    return {
        "id": REQUEST_ID,
        "rank": rank,
        "steps": timeline.prefill_passes + len(timeline.tokens) - 1,
        "disk_bytes": spent(first, "disk"),
        "disk_bytes_decode": spent(prefill, "disk"),
        "wire_bytes_sent": since(first, "num_bytes"),
        "wire_bytes_sent_decode": since(prefill, "num_bytes"),
        "messages_sent": since(first, "messages"),
        "messages_sent_decode": since(prefill, "messages"),
        "compute_s": spent(first, "compute") / 1e9,
        "allreduce_s": spent(first, "allreduce") / 1e9,
        "wait_weights_s": spent(first, "wait") / 1e9,
        "rss_hwm": timeline.rss_hwm[rank],
    }


def _span_events(timeline: Timeline, rank: int, end_ns: int) -> list[Event]:
    spans = sorted(
        (int(span.start[i]), int(span.end[i]), span.name, span.label)
        for span in timeline.spans
        for i in np.flatnonzero(span.ranks == rank)
        # A window's first blocks were read before the request.
        if span.end[i] > max(span.start[i], timeline.go)
    )
    rows = [[name, start, end, label] for start, end, name, label in spans]
    return [
        Event(
            "spans", end_ns,
            {"id": REQUEST_ID, "rank": rank, "spans": rows[i : i + _SPANS_PER_EVENT]},
        )
        for i in range(0, len(rows), _SPANS_PER_EVENT)
    ]  # fmt: skip
