"""Where the time goes: named spans, summed always and kept one by one when asked.

`Tracer` is passed to whoever has something to time. Summing costs two clock reads a span; keeping
the single spans (for a timeline) is off unless `keep` is set.
"""

import json
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Span:
    """One finished span; times from CLOCK_MONOTONIC, in nanoseconds."""

    name: str
    start_ns: int
    end_ns: int
    args: dict[str, int | str]


@dataclass
class Tracer:
    """Sums seconds by span name; keeps the spans too when `keep` is true."""

    keep: bool = False
    totals_ns: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    spans: list[Span] = field(default_factory=list)

    @contextmanager
    def span(self, name: str, **args: int | str) -> Iterator[None]:
        """Time the body under `name`; a body that raises is counted too."""
        start_ns = time.monotonic_ns()
        try:
            yield
        finally:
            self.add(name, start_ns, time.monotonic_ns(), **args)

    def add(self, name: str, start_ns: int, end_ns: int, **args: int | str) -> None:
        """Record a span that was timed by the caller (cheaper in inner loops)."""
        self.totals_ns[name] += end_ns - start_ns
        if self.keep:
            self.spans.append(Span(name, start_ns, end_ns, args))

    def seconds(self, name: str) -> float:
        """Total seconds under `name` so far."""
        return self.totals_ns[name] / 1e9


def write_trace(tracer: Tracer, path: Path, rank: int) -> None:
    """Write the kept spans as a Chrome/Perfetto trace file, this rank as one process.

    Units: microseconds of CLOCK_MONOTONIC.
    """
    events = [
        {
            "name": span.name, "ph": "X", "pid": rank, "tid": span.name,
            "ts": span.start_ns / 1e3, "dur": (span.end_ns - span.start_ns) / 1e3,
            "args": span.args,
        }
        for span in tracer.spans
    ]  # fmt: skip
    path.write_text(json.dumps({"traceEvents": events}), encoding="utf-8")
