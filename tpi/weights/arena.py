"""Where blocks lie in memory: a pure placement plan, and the memory itself (`Arena`).

`place` decides before the first read at which offset every block of the endless cyclic list will
lie, so that blocks that are resident together never overlap. It tries the least size that could
work (the largest sum of `window` consecutive blocks), then larger ones; a ring one block larger
than the least always works.
"""

import math
import mmap
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from tpi.errors import ResourceError
from tpi.units import format_bytes

# Sizes tried between the least arena and that of a ring.
_GROWTH_STEPS = 16
# From here on a ring wastes less than a tenth or so, and the search takes seconds.
_MAX_SEARCHED_WINDOW = 8
# Blocks looked ahead, and placements tried, for one block: bounds planning time.
_LOOK_AHEAD = 16
_SEARCH_NODES = 256
# A searched placement that has not become periodic after this many cycles is given up.
_MAX_CYCLES = 8

_Span = tuple[int, int]  # offset, size


@dataclass(frozen=True, slots=True)
class ArenaPlan:
    """Offsets of positions 0, 1, ... of the endless list; from `period_start` on they repeat."""

    arena_bytes: int
    offsets: tuple[int, ...]
    period_start: int = 0

    def offset(self, position: int) -> int:
        """Return where the block at `position` (0, 1, 2, ... without end) lies."""
        if position < len(self.offsets):
            return self.offsets[position]
        period = len(self.offsets) - self.period_start
        return self.offsets[self.period_start + (position - self.period_start) % period]


def least_arena_bytes(sizes: Sequence[int], window: int) -> int:
    """Return the largest sum of `window` consecutive blocks of the cyclic list: the lower bound."""
    count = len(sizes)
    if window >= count:
        return sum(sizes)
    total = best = sum(sizes[:window])
    for i in range(count):
        total += sizes[(i + window) % count] - sizes[i]
        best = max(best, total)
    return best


def place(sizes: Sequence[int], window: int) -> ArenaPlan:
    """Plan an arena in which any `window` consecutive blocks of the cyclic list lie side by side.

    When the block at position p is loaded, those at p - window + 1 .. p - 1 may still be in use.
    Even positions prefer the lowest gap and odd ones the highest, which is without loss for
    window 2; for larger windows a search over the blocks to come avoids splitting the free space.

    Units: bytes. Cost: the least arena for window 1 and 2, at most one block above it otherwise.
    """
    if window < 1:
        raise ValueError(f"window must be >= 1, got {window}")
    if window >= len(sizes):
        return ArenaPlan(sum(sizes), tuple(sum(sizes[:i]) for i in range(len(sizes))))
    least, largest, grain = least_arena_bytes(sizes, window), max(sizes), math.gcd(*sizes)
    if window <= _MAX_SEARCHED_WINDOW:
        for step in range(_GROWTH_STEPS):
            # A multiple of what all sizes are multiples of, so that offsets stay page-aligned.
            extra = largest * step // _GROWTH_STEPS // grain * grain
            plan = _searched_plan(sizes, window, least + extra)
            if plan is not None:
                return plan
    return _ring_plan(sizes, least + largest)


def _ring_plan(sizes: Sequence[int], arena_bytes: int) -> ArenaPlan:
    """Place each block after the one before, or at the start where the end has no room for it.

    Blocks leave in the order they came, so the only space lost is that before the end, less than
    one block. Where a cycle begins decides all that follows, so the plan becomes periodic.
    """
    offsets: list[int] = []
    seen: dict[int, int] = {}
    head = 0
    while head not in seen:
        seen[head] = len(offsets)
        for size in sizes:
            start = head if head + size <= arena_bytes else 0
            offsets.append(start)
            head = start + size
    return ArenaPlan(arena_bytes, tuple(offsets), seen[head])


def _searched_plan(sizes: Sequence[int], window: int, arena_bytes: int) -> ArenaPlan | None:
    """Place cycle after cycle until a cycle begins as an earlier one did; None if one fails."""
    count = len(sizes)
    ahead = min(2 * window, _LOOK_AHEAD)
    offsets: list[int] = []
    resident: list[_Span] = []
    seen: dict[tuple[int, tuple[_Span, ...]], int] = {}
    for _ in range(_MAX_CYCLES):
        position = len(offsets)
        state = (position % 2, tuple(resident))
        if state in seen:
            return ArenaPlan(arena_bytes, tuple(offsets), seen[state])
        seen[state] = position
        for i in range(count):
            coming = [sizes[(i + k) % count] for k in range(ahead + 1)]
            found = _Search(arena_bytes, window).offset(resident, coming, position + i)
            if found is None:
                return None
            offsets.append(found)
            resident = _after(resident, (found, sizes[i]), window)
    return None


def _after(resident: list[_Span], new: _Span, window: int) -> list[_Span]:
    """Return what may still be in use when the block after `new` is loaded."""
    kept = [*resident, new]
    return kept[1:] if len(kept) >= window else kept


class _Search:
    """Depth-first search for an offset that leaves room for the blocks to come."""

    def __init__(self, arena_bytes: int, window: int) -> None:
        self._arena_bytes = arena_bytes
        self._window = window
        self._nodes_left = _SEARCH_NODES

    def offset(self, resident: list[_Span], coming: Sequence[int], position: int) -> int | None:
        """Return an offset for `coming[0]` with which all of `coming` can be placed in turn."""
        self._nodes_left -= 1
        if self._nodes_left < 0:
            return None
        for offset in self._candidates(resident, coming[0], low_first=position % 2 == 0):
            after = _after(resident, (offset, coming[0]), self._window)
            if len(coming) == 1 or self.offset(after, coming[1:], position + 1) is not None:
                return offset
        return None

    def _candidates(self, resident: list[_Span], size: int, *, low_first: bool) -> list[int]:
        lows, highs, start = [], [], 0
        for offset, length in [*sorted(resident), (self._arena_bytes, 0)]:
            if offset - start >= size:
                lows.append(start)
                highs.append(offset - size)
            start = offset + length
        highs.reverse()
        ordered = [*lows, *highs] if low_first else [*highs, *lows]
        return list(dict.fromkeys(ordered))


class Arena:
    """One anonymous, page-aligned mapping; its pages cost memory when they are first written.

    Raises:
        ResourceError: the system has no room for that many bytes.
    """

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = num_bytes
        # Private, so that it counts (and is limited) as anonymous memory, not as shared memory.
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        try:
            self._map = mmap.mmap(-1, max(num_bytes, mmap.PAGESIZE), flags=flags)
        except OSError as exc:
            raise ResourceError(
                f"no memory for an arena of {num_bytes} bytes ({format_bytes(num_bytes)}): {exc}; "
                "use a smaller window or a memory_budget"
            ) from exc
        if hasattr(mmap, "MADV_HUGEPAGE"):
            # Fewer page faults on first use and fewer pages to pin for each O_DIRECT request. A
            # kernel without huge pages refuses the hint; nothing else depends on it.
            with suppress(OSError):
                self._map.madvise(mmap.MADV_HUGEPAGE)
        self._view = memoryview(self._map)

    def view(self, offset: int, num_bytes: int) -> memoryview:
        """Return a writable view of `num_bytes` bytes at `offset`."""
        return self._view[offset : offset + num_bytes]

    def close(self) -> None:
        """Give the memory back; where a tensor still points into it, when that tensor goes."""
        self._view.release()
        try:
            self._map.close()
        except BufferError:
            # Somebody still holds a view; the mapping ends with the last of them.
            return
