"""The rows of a `spans` event: where the time of one request went on one rank, span by span.

A row is [name, start_ns, end_ns, label]: what was done, when (CLOCK_MONOTONIC), and of which block
(`attn.3`, `ffn.3`, `head.0`, or nothing). A span of `load` may run beside the others; the rest of a
rank's spans follow one another. `events.py` writes and checks them; read `SPAN_NAMES` first.
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Annotated, Literal, get_args

from msgspec import Meta

SpanName = Literal[
    "compute",
    "allreduce",  # collectives, waiting for slower ranks included
    "load",  # a block is read from disk, beside whatever else goes on
    "wait",  # nothing goes on but waiting for weights
]
SPAN_NAMES: tuple[str, ...] = get_args(SpanName)
# A line of so many, each at its longest, stays below `events.MAX_LINE_BYTES`.
MAX_ROWS = 500
_Ns = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
# Signs that take one byte as JSON.
_Label = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9_.-]{0,32}\Z")]

Row = tuple[str, int, int, str]
Rows = Annotated[list[tuple[SpanName, _Ns, _Ns, _Label]], Meta(max_length=MAX_ROWS)]


def rows_by_line(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Cut rows into lists that each fit one event."""
    left = iter(rows)
    while some := list(islice(left, MAX_ROWS)):
        yield some
