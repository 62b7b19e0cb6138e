"""Where the time goes: named spans, summed always and kept one by one when asked.

`Tracer` is passed to whoever has something to time. Summing costs two clock reads a span; keeping
the single spans (for a timeline) is off unless `keep` is set, and costs about 210 bytes a span,
which count as the program's memory. Several threads may use one tracer as long as each has names
of its own: a sum is not safe between two threads, the list of spans is.
"""

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from tpi.spans import Row

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
    """One finished span; times from CLOCK_MONOTONIC.

    Attributes:
        kind: Of the block that it belongs to, and `layer` its index; empty if to none.
        step: Which pass it belongs to; negative where nobody said.
    """

    name: str
    start_ns: int
    end_ns: int
    kind: str = ""
    layer: int = 0
    step: int = -1

    @property
    def label(self) -> str:
        """The block: `attn.3`; empty if it is of none."""
        return f"{self.kind}.{self.layer}" if self.kind else ""


@dataclass
class Tracer:
    """Sums seconds by span name; keeps the spans too when `keep` is true.

    Attributes:
        is_full: Whether spans were not kept because there were `MAX_SPANS` already.
    """

    keep: bool = False
    totals_ns: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    spans: list[Span] = field(default_factory=list)
    is_full: bool = False

    @contextmanager
    def span(self, name: str, kind: str = "", layer: int = 0) -> Iterator[None]:
        """Time the body under `name`; a body that raises is counted too."""
        start_ns = time.monotonic_ns()
        try:
            yield
        finally:
            self.add(name, start_ns, time.monotonic_ns(), kind, layer)

    def add(
        self,
        name: str,
        start_ns: int,
        end_ns: int,
        kind: str = "",
        layer: int = 0,
        step: int = -1,
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

    def seconds(self, name: str) -> float:
        """Total seconds under `name` so far."""
        return self.totals_ns[name] / 1e9

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
