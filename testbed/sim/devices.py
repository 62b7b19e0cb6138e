"""Devices that load blocks with one thread and compute with another: vectors over ranks.

The window's rule (`tpi/weights/window.py`): the loader reads block i once i - 1 is read and
i - window was given back; a block is taken when it is read and both ranks' threads are there, and
given back when its computing ends. Times are whole nanoseconds.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from testbed.sim.network import Ints

_LONG_AGO = -(1 << 62)


@dataclass(frozen=True, slots=True)
class Block:
    """One block of a step, on all ranks that have a part of it.

    Attributes:
        label: `attn.3`.
        ranks: Those that compute it; None for all.
        streamed: Those that read it for every step.
        load: Nanoseconds that reading takes those; `num_bytes` is how much they read.
    """

    label: str
    ranks: Ints | None
    streamed: Ints
    load: Ints
    num_bytes: Ints


@dataclass(frozen=True, slots=True)
class Span:
    """Something that took some ranks time; nanoseconds."""

    name: str
    label: str
    ranks: Ints
    start: Ints
    end: Ints


@dataclass(slots=True)
class Tally:
    """Times spent and bytes read by each rank so far; nanoseconds."""

    compute: Ints
    allreduce: Ints
    wait: Ints
    disk: Ints

    @classmethod
    def zero(cls, size: int) -> "Tally":
        """Nothing yet."""
        return cls(*(np.zeros(size, dtype=np.int64) for _ in range(4)))

    def copy(self) -> "Tally":
        """As it is now."""
        return Tally(self.compute.copy(), self.allreduce.copy(), self.wait.copy(), self.disk.copy())


@dataclass(slots=True)
class Devices:
    """All ranks' clocks, loaders and windows.

    Attributes:
        windows: Blocks that each may hold of those that it streams.
        keep: Whether to keep spans.
        now: Where each rank's computing thread is.
    """

    windows: Sequence[int]
    keep: bool = False
    now: Ints = field(init=False)
    tally: Tally = field(init=False)
    spans: list[Span] = field(init=False, default_factory=list)
    _loader: Ints = field(init=False)
    _taken: Ints = field(init=False)
    _window: Ints = field(init=False)
    _released: NDArray[np.int64] = field(init=False)
    _all: Ints = field(init=False)

    def __post_init__(self) -> None:
        size = len(self.windows)
        self._window = np.array(self.windows, dtype=np.int64)
        self._released = np.full((size, int(self._window.max())), _LONG_AGO)
        self._all = np.arange(size)
        self.now, self._loader, self._taken = (np.zeros(size, dtype=np.int64) for _ in range(3))
        self.tally = Tally.zero(size)

    def run(self, block: Block, compute: Ints) -> None:
        """Take a block on its ranks, compute for so long (by rank), and give it back."""
        ranks = slice(None) if block.ranks is None else block.ranks
        streams = len(block.streamed) > 0
        slot = self._take(block) if streams else None
        start = self.now[ranks].copy()
        end = start + compute[ranks]
        self.now[ranks] = end
        self.tally.compute[ranks] += compute[ranks]
        if slot is not None:
            self._released[block.streamed, slot] = self.now[block.streamed]
            self._taken[block.streamed] += 1
        if self.keep:
            who = self._all if block.ranks is None else block.ranks
            self.spans.append(Span("compute", block.label, who, start, end))

    def _take(self, block: Block) -> Ints:
        """Wait until the block is there; returns its slot on each rank that streams it."""
        ranks = block.streamed
        slot = self._taken[ranks] % self._window[ranks]
        begin = np.maximum(self._loader[ranks], self._released[ranks, slot])
        end = begin + block.load
        before = self.now[ranks]
        after = np.maximum(before, end)
        self._loader[ranks] = end
        self.now[ranks] = after
        self.tally.wait[ranks] += after - before
        self.tally.disk[ranks] += block.num_bytes
        if self.keep:
            self.spans.append(Span("load", block.label, ranks, begin, end))
            self.spans.append(Span("wait", block.label, ranks, before, after))
        return slot

    def skip(self, block: Block) -> None:
        """Pass a block over: it is read only if its reading has begun."""
        ranks = block.streamed
        slot = self._taken[ranks] % self._window[ranks]
        begin = np.maximum(self._loader[ranks], self._released[ranks, slot])
        has_begun = begin < self.now[ranks]
        end = begin + block.load
        self._loader[ranks] = np.where(has_begun, end, self._loader[ranks])
        if self.keep and has_begun.any():
            spans = (ranks[has_begun], begin[has_begun], end[has_begun])
            self.spans.append(Span("load", block.label, *spans))
        self._released[ranks, slot] = self.now[ranks]
        self._taken[ranks] += 1

    def share(self, began: Ints, tally: Tally, read: Ints) -> None:
        """Make a step take no less than its work, because loader and computing share a processor.

        Each is simulated as if it were alone, and never takes longer than that where a step waits
        for long; what both together need beyond the step is a wait for weights. The step began at
        `began` with `tally` spent; the loader's own work of it takes the processor `read` ns.
        """
        before = self.now.copy()
        least = began + self.tally.compute - tally.compute + read
        np.maximum(self.now, least, out=self.now)
        self.tally.wait += self.now - before
        if self.keep and (self.now > before).any():
            self.spans.append(Span("wait", "", self._all, before, self.now.copy()))

    def start_at(self, now: int) -> None:
        """Set all clocks; the loaders have filled their windows by then and wait."""
        self.now[:] = now
        self._loader[:] = _LONG_AGO

    def fill(self, blocks: Sequence[Block]) -> int:
        """Nanoseconds that it takes all loaders to fill their windows from the start of these."""
        ends = np.zeros(len(self._window), dtype=np.int64)
        seen = np.zeros(len(self._window), dtype=np.int64)
        for block in blocks:
            due = seen[block.streamed] < self._window[block.streamed]
            ends[block.streamed] += np.where(due, block.load, 0)
            seen[block.streamed] += 1
        return int(ends.max(initial=0))

    def summed(self, before: Ints, label: str) -> None:
        """Note that since `before` all ranks took part in a sum."""
        self.tally.allreduce += self.now - before
        if self.keep:
            self.spans.append(Span("allreduce", label, self._all, before, self.now.copy()))
