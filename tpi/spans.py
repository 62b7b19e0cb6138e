"""The rows of a `spans` event: where the time of one request went on one rank, span by span.

A row is [name, start_ns, end_ns, label]: what was done, when (CLOCK_MONOTONIC), and of which block
(`attn.3`, `ffn.3`, `head.0`, or nothing). A span of `load` may run beside the others; the rest of a
rank's spans follow one another. `events.py` writes and checks them; read `SPAN_NAMES` first.
"""

import re
from collections.abc import Iterable, Iterator
from itertools import islice

Row = tuple[str, int, int, str]

SPAN_NAMES = (
    "compute",
    "allreduce",  # collectives, waiting for slower ranks included
    "load",  # a block is read from disk, beside whatever else goes on
    "wait",  # nothing goes on but waiting for weights
)
# A line of so many, each at its longest, stays below `events.MAX_LINE_BYTES`.
MAX_ROWS = 500
# Signs that take one byte as JSON.
_LABEL = re.compile(r"[A-Za-z0-9_.-]{0,32}")
_MAX_NS = 1 << 63


def rows_by_line(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Cut rows into lists that each fit one event."""
    left = iter(rows)
    while some := list(islice(left, MAX_ROWS)):
        yield some


def are_rows(value: object) -> bool:
    """Whether a JSON value is what a `spans` event carries."""
    return isinstance(value, list) and len(value) <= MAX_ROWS and all(map(_is_row, value))


def _is_row(row: object) -> bool:
    if not isinstance(row, list) or len(row) != 4:
        return False
    name, start_ns, end_ns, label = row
    if name not in SPAN_NAMES or not isinstance(label, str) or not _LABEL.fullmatch(label):
        return False
    # `type`, since True is an int.
    return type(start_ns) is type(end_ns) is int and 0 <= start_ns <= end_ns < _MAX_NS
