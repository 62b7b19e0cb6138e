"""Where the time goes: named spans, summed always and kept one by one when asked.

Summing costs two clock reads a span. Keeping the single spans (for a timeline) is off unless `keep`
is set, and costs about 210 bytes a span of the program's memory. Several threads may use one
tracer as long as each has names of its own: a sum is not safe between two threads, the list of
spans is.

A `spans` event has rows [name, start_ns, end_ns, label]: what was done, when (CLOCK_MONOTONIC), and
for which block (`attn.3`, `ffn.3`, `head.0`, or nothing). A span of `load` may run beside the
others; the rest of a rank's spans follow one another. `events.py` writes and checks them.
"""

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Annotated, Literal, NamedTuple, get_args

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

# So many are kept at most: 42 MB on a device. A step of an 80-layer model makes some 800.
MAX_SPANS = 200_000
# What the sums are called here, and in a `spans` event; the rest is only summed.
_ROW_NAMES = {
    "compute": "compute",
    "allreduce": "allreduce",
    "load_block": "load",
    "wait_weights": "wait",
}


class Span(NamedTuple):
    """One finished span; times from CLOCK_MONOTONIC."""

    name: str
    start_ns: int
    end_ns: int
    kind: str = ""  # of its block, and `layer` the block's index; empty if it belongs to none
    layer: int = 0
    step: int = -1  # the pass it belongs to; negative if that is not known

    @property
    def label(self) -> str:
        """The block: `attn.3`; empty if it is of none."""
        return f"{self.kind}.{self.layer}" if self.kind else ""


@dataclass
class Tracer:
    """Sums seconds by span name; keeps the spans too when `keep` is true."""

    keep: bool = False
    totals_ns: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    spans: list[Span] = field(default_factory=list)
    is_full: bool = False  # spans were not kept because there were `MAX_SPANS` already

    @contextmanager
    def span(self, name: str, kind: str = "", layer: int = 0) -> Iterator[None]:
        """Time the body under `name`; a body that raises is counted too."""
        start_ns = time.monotonic_ns()
        try:
            yield
        finally:
            self.add(name, start_ns, time.monotonic_ns(), kind, layer)

    def add(
        self, name: str, start_ns: int, end_ns: int, kind: str = "", layer: int = 0, step: int = -1
    ) -> None:
        """Record a span that was timed by the caller (cheaper in inner loops)."""
        self.totals_ns[name] += end_ns - start_ns
        if self.keep:
            self._keep(Span(name, start_ns, end_ns, kind, layer, step))

    def _keep(self, span: Span) -> None:
        if len(self.spans) < MAX_SPANS:
            self.spans.append(span)
        else:
            self.is_full = True

    def take(self) -> list[Span]:
        """Hand over the spans kept so far and forget them; another thread may add meanwhile."""
        taken = self.spans[:]
        del self.spans[: len(taken)]
        self.is_full = False
        return taken


def rows_of(spans: Iterable[Span]) -> Iterator[Row]:
    """What a `spans` event says of them."""
    for span in spans:
        if name := _ROW_NAMES.get(span.name):
            yield name, span.start_ns, span.end_ns, span.label


def rows_by_line(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Cut rows into lists that each fit one event."""
    left = iter(rows)
    while some := list(islice(left, MAX_ROWS)):
        yield some
