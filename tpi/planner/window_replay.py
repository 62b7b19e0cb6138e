"""How long a step takes with a window of blocks, block by block. Pure; times are seconds.

This is Prop. 3 of the paper (`propositions.py`) with what it leaves out: the window's size, the
head's tiles, retained blocks, and the next step's first blocks that load during this one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

# Cycles that `predict_step` replays; the last one is the steady state.
_CYCLES = 4


@dataclass(frozen=True, slots=True)
class BlockTimes:
    """One block of a step: computing, the allreduce after it, and reading (None if retained)."""

    compute_s: float
    after_s: float
    load_s: float | None


@dataclass(frozen=True, slots=True)
class StepTimes:
    """A predicted step."""

    first_s: float  # the first step, from an empty window
    step_s: float  # a step in the steady state
    stall_s: float  # of it, waiting for weights

    @property
    def is_steady(self) -> bool:
        """Whether loading is hidden: stalls are below 1 % of the step."""
        return self.stall_s <= 0.01 * self.step_s


def predict_step(blocks: Sequence[BlockTimes], window: int | None) -> StepTimes:
    """Replay the window's rule: block i loads once i - 1 is loaded and i - window released.

    i counts streamed blocks only. A block is released when its computing ends, before its
    allreduce. With window None everything is resident and nothing stalls.
    """
    streamed = [b for b in blocks if b.load_s is not None]
    if window is None or window >= len(streamed):
        total = sum(b.compute_s + b.after_s for b in blocks)
        return StepTimes(total, total, 0.0)
    now = loader_free = 0.0
    released: list[float] = []
    ends, stalls = [0.0], []
    for _ in range(_CYCLES):
        stall = 0.0
        for block in blocks:
            if block.load_s is not None:
                position = len(released)
                room = released[position - window] if position >= window else 0.0
                loader_free = max(loader_free, room) + block.load_s
                stall += max(0.0, loader_free - now)
                now = max(now, loader_free)
                released.append(now + block.compute_s)
            now += block.compute_s + block.after_s
        ends.append(now)
        stalls.append(stall)
    return StepTimes(ends[1], ends[-1] - ends[-2], stalls[-1])
