"""The single spans of a traced repeat: what every rank did when, in the request's own seconds.

They come from `spans` events (`tpi/spans.py`), which a run writes with `trace=true`.
`trace_file.py` makes a file for a timeline viewer of them, `window_history.py` the window over
time.
"""

from dataclasses import dataclass

from results.records.schema import RecordError, Repeat
from tpi.program.events import Event
from tpi.ranks import MASTER_RANK

_EVENT = "spans"


@dataclass(frozen=True, slots=True)
class RankSpan:
    """One span of one rank.

    Attributes:
        name: One of `tpi.spans.SPAN_NAMES`.
        label: The block, as `attn.3`; empty if it is of none.
        start_s: Since the request began, undilated; likewise `end_s`. A load that was under way
            then has a start below 0.
    """

    rank: int
    name: str
    label: str
    start_s: float
    end_s: float


def spans_of(repeat: Repeat) -> list[RankSpan]:
    """The spans of the measured request, by their start; none if the run was not traced.

    What ended before the request began is left out.

    Raises:
        RecordError: There are spans, and no request that they belong to.
    """
    events = _events(repeat)
    if not events:
        return []
    go_ns, second = _go_ns(repeat), 1e9 * repeat.dilation
    spans = [
        RankSpan(event.rank, name, label, (start_ns - go_ns) / second, (end_ns - go_ns) / second)
        for event in events
        for name, start_ns, end_ns, label in event.fields["spans"]  # type: ignore[attr-defined]
        if end_ns >= go_ns
    ]
    return sorted(spans, key=lambda span: (span.start_s, span.end_s, span.rank, span.name))


def is_cut(repeat: Repeat) -> bool:
    """Whether a rank had more spans than it kept: the last part of its request is then missing."""
    return any(event.fields.get("cut") is True for event in _events(repeat))


def _events(repeat: Repeat) -> list[Event]:
    return [e for e in repeat.events if e.name == _EVENT and e.request_id == repeat.request_id]


def _go_ns(repeat: Repeat) -> int:
    for event in repeat.events:
        is_begin = event.name == "request" and event.rank == MASTER_RANK
        if is_begin and event.request_id == repeat.request_id:
            return event.t_ns
    raise RecordError(f"repeat {repeat.index}: spans without a request {repeat.request_id!r}")
