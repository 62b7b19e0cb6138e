"""Which blocks a rank has in memory when: the window of a traced repeat over time.

A streamed block is there from the beginning of its load until its computation has ended, a retained
one always. What the window held when the request began is there from the start.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import inf

from results.records.schema import Repeat
from results.records.spans import RankSpan, spans_of
from tpi.ranks import MASTER_RANK

# When a block leaves that no pass computed, given its load and the start of its next one.
_Leave = Callable[[RankSpan, float], float | None]


@dataclass(slots=True)
class _Block:
    """The spans of one block, in order."""

    loads: list[RankSpan] = field(default_factory=list)
    computes: list[RankSpan] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Stay:
    """One block in memory; `end_s` is None where it stays to the end of the trace."""

    label: str
    start_s: float
    end_s: float | None


def window_history(repeat: Repeat, rank: int = MASTER_RANK) -> list[Stay]:
    """When each block was in memory, by its start; empty without a trace or a window."""
    spans = [span for span in spans_of(repeat) if span.rank == rank and span.label]
    blocks: defaultdict[str, _Block] = defaultdict(_Block)
    for span in spans:
        if span.name == "load":
            blocks[span.label].loads.append(span)
        elif span.name == "compute":
            blocks[span.label].computes.append(span)
    if not any(block.loads for block in blocks.values()):
        return []
    kept = _kept(blocks, _number(repeat, rank, "retained"))
    first = next((s.label for s in spans if s.name == "compute"), "")
    passes = [span.start_s for span in blocks[first].computes] if first else []
    loads = sorted(span.start_s for span in spans if span.name == "load")
    window = _number(repeat, rank, "window")

    def leave(load: RankSpan, next_s: float) -> float | None:
        """When the next pass begins, or the load that needs its slot; `next_s` is its own next."""
        ends = [p for p in passes if load.end_s <= p < next_s][:1]
        if window:
            ends += loads[bisect_left(loads, load.start_s) + window :][:1]
        return min(ends, default=None)

    stays = [s for label, b in blocks.items() for s in _stays(label, b, leave, label in kept)]
    begin_s = min([0.0, *(stay.start_s for stay in stays if stay.start_s > -inf)])
    stays = [replace(stay, start_s=max(begin_s, stay.start_s)) for stay in stays]
    return sorted(stays, key=lambda stay: (stay.start_s, stay.label))


def _kept(blocks: Mapping[str, _Block], count: int) -> set[str]:
    """The `count` retained blocks.

    A block that is never loaded and computed again is retained. The others are among those computed
    after the first block loaded for this pass: what the window held before comes in front of it.
    FFN blocks are retained before others (`tpi/planner/memory.py`).
    """
    unloaded = [label for label, block in blocks.items() if not block.loads]
    again = {label for label in unloaded if len(blocks[label].computes) > 1}
    loaded_s = [
        block.computes[0].start_s
        for block in blocks.values()
        if block.computes and block.loads and block.loads[0].end_s <= block.computes[0].start_s
    ]
    first_s = min(loaded_s, default=inf)

    def doubt(label: str) -> tuple[bool, bool]:
        is_before = blocks[label].computes[0].start_s < first_s
        return is_before, not label.startswith("ffn")

    once = sorted((label for label in unloaded if label not in again), key=doubt)
    return again | set(once[: max(0, count - len(again))])


def _stays(label: str, block: _Block, leave: _Leave, is_kept: bool) -> Iterator[Stay]:
    """When a block comes and goes."""
    if is_kept:
        yield Stay(label, -inf, None)
        return
    loads, computes = block.loads, block.computes
    if computes and (not loads or computes[0].end_s < loads[0].end_s):
        yield Stay(label, -inf, computes[0].end_s)
    for number, load in enumerate(loads):
        next_s = loads[number + 1].start_s if number + 1 < len(loads) else inf
        ends = [c.end_s for c in computes if load.end_s <= c.start_s < next_s]
        # A pass without logits skips the head: what was loaded of it goes all the same.
        yield Stay(label, load.start_s, ends[-1] if ends else leave(load, next_s))


def _number(repeat: Repeat, rank: int, name: str) -> int:
    """A number of a rank's `ready` event; 0 without one."""
    ready = (e for e in repeat.events if e.rank == rank and e.name == "ready")
    return sum(int(event.number(name)) for event in ready)
