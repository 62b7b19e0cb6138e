"""The single spans of a traced repeat: what every rank did when, in seconds since the request.

They come from `spans` events (`tpi/trace.py`), which a run writes with `trace=true`.
"""

from dataclasses import dataclass

from results.records.schema import RecordError, Repeat
from tpi.ranks import MASTER_RANK


@dataclass(frozen=True, slots=True)
class RankSpan:
    """One span of one rank, in undilated seconds since the request began."""

    rank: int
    name: str  # one of `tpi.trace.SPAN_NAMES`
    label: str  # the block, as `attn.3`; empty if it is of none
    start_s: float
    end_s: float


def spans_of(repeat: Repeat) -> list[RankSpan]:
    """Spans of the measured request by their start, without what ended before it; none untraced."""
    events, requests = repeat.of_request("spans"), repeat.of_request("request", MASTER_RANK)
    if not events:
        return []
    if not requests:
        raise RecordError(f"repeat {repeat.index}: spans without a request {repeat.request_id!r}")
    go_ns, second = requests[0].t_ns, 1e9 * repeat.dilation
    spans = [
        RankSpan(event.rank, name, label, (start_ns - go_ns) / second, (end_ns - go_ns) / second)
        for event in events
        for name, start_ns, end_ns, label in event.fields["spans"]  # type: ignore[attr-defined]
        if end_ns >= go_ns
    ]
    return sorted(spans, key=lambda span: (span.start_s, span.end_s, span.rank, span.name))


def is_cut(repeat: Repeat) -> bool:
    """Whether a rank had more spans than it kept: the last part of its request is then missing."""
    return any(event.fields.get("cut") is True for event in repeat.of_request("spans"))
