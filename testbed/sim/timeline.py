"""From clocks and counters to the events that the real programs would have written.

A system's schedule leaves a `Mark` at the start of the measured request and after each token;
`to_events` makes events of them, as `tpi/program/host.py` does: `ready` of every rank, `request`
and `token` of rank 0, `counters` and `end` of every rank, and `spans` where they were kept.
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
_Told = tuple[int, Event]


@dataclass(frozen=True, slots=True)
class Mark:
    """Where all ranks are at one moment: clocks, times spent, messages and their bytes."""

    now: Ints
    tally: Tally
    messages: Ints
    num_bytes: Ints


@dataclass(frozen=True, slots=True)
class Story:
    """One start of a system with one request.

    Attributes:
        ready: When each rank was ready.
        go: When the request came.
        first: Before the request.
        tokens: After each token; there is at least one.
        rss_hwm: Peak memory of each rank.
        spans: Of the request.
        prefill_passes: Chunks of the prompt; each token behind the first takes one pass more.
        said: What each rank says of its window when it is ready, if it has one.
    """

    ready: Ints
    go: int
    first: Mark
    tokens: Sequence[Mark]
    rss_hwm: Sequence[int]
    spans: Sequence[Span] = ()
    prefill_passes: int = 1
    said: Sequence[Mapping[str, object]] = ()


def to_events(story: Story) -> tuple[_Told, ...]:
    """All events, in the order of their stamps."""
    ranks = range(len(story.ready))
    told: list[_Told] = [
        (rank, Event("ready", int(story.ready[rank]), {"verify_s": 0.0, **said}))
        for rank, said in zip(ranks, story.said or [{}] * len(ranks), strict=True)
    ]
    told.append((MASTER_RANK, Event("request", story.go, {"id": REQUEST_ID})))
    for mark in story.tokens:
        fields = {"id": REQUEST_ID, "token": 0}
        told.append((MASTER_RANK, Event("token", int(mark.now[MASTER_RANK]), fields)))
    for rank in ranks:
        end_ns = int(max(story.tokens[-1].now[rank], story.tokens[-1].now[MASTER_RANK]))
        told += [(rank, event) for event in _span_events(story, rank, end_ns)]
        told.append((rank, Event("counters", end_ns, _counters(story, rank))))
        told.append((rank, Event("end", end_ns, {"id": REQUEST_ID})))
    return tuple(sorted(told, key=lambda item: item[1].t_ns))


def _counters(story: Story, rank: int) -> dict[str, object]:
    first, prefill, last = story.first, story.tokens[0], story.tokens[-1]

    def since(name: str, begin: Mark) -> int:
        return int(getattr(last, name)[rank] - getattr(begin, name)[rank])

    def spent(name: str, begin: Mark) -> int:
        return int(getattr(last.tally, name)[rank] - getattr(begin.tally, name)[rank])

    return {
        "id": REQUEST_ID,
        "rank": rank,
        "steps": story.prefill_passes + len(story.tokens) - 1,
        "disk_bytes": spent("disk", first),
        "disk_bytes_decode": spent("disk", prefill),
        "wire_bytes_sent": since("num_bytes", first),
        "wire_bytes_sent_decode": since("num_bytes", prefill),
        "messages_sent": since("messages", first),
        "messages_sent_decode": since("messages", prefill),
        "compute_s": spent("compute", first) / 1e9,
        "allreduce_s": spent("allreduce", first) / 1e9,
        "wait_weights_s": spent("wait", first) / 1e9,
        "rss_hwm": story.rss_hwm[rank],
    }


def _span_events(story: Story, rank: int, end_ns: int) -> list[Event]:
    spans = sorted(
        (int(span.start[i]), int(span.end[i]), span.name, span.label)
        for span in story.spans
        for i in np.flatnonzero(span.ranks == rank)
        # A window's first blocks were read before the request.
        if span.end[i] > max(span.start[i], story.go)
    )
    rows = [[name, start, end, label] for start, end, name, label in spans]
    return [
        Event(
            "spans", end_ns,
            {"id": REQUEST_ID, "rank": rank, "spans": rows[i : i + _SPANS_PER_EVENT]},
        )
        for i in range(0, len(rows), _SPANS_PER_EVENT)
    ]  # fmt: skip
