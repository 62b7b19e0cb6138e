"""Which layers each device of a pipeline holds, and what that costs. Pure: no torch, no I/O.

A stage is a contiguous range of layers; the master's comes first, and it holds the LM head beside
it. `make_stages` divides the layers in proportion to the devices' memories, `stage_peaks` predicts
what each device needs.
"""

import heapq
import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import accumulate, pairwise

from tpi.errors import ConfigError
from tpi.model_config import ModelConfig
from tpi.options import ComputeOptions
from tpi.planner.memory import block_bytes, memory_parts
from tpi.ranks import MASTER_RANK
from tpi.weights.shard import BlockId, make_shard_plan


def make_stages(
    model: ModelConfig, world_size: int, shares: Sequence[float] | None, storage: str
) -> tuple[range, ...]:
    """Give every rank a range of layers, at least one, so that the fullest is as empty as possible.

    `shares` are the proportions of the devices' memories, None for all alike. How full a rank is:
    its bytes, divided by its share. Ties go to the lower rank.

    Raises:
        ConfigError: More devices than layers, or shares that are not numbers > 0, one a device.
    """
    found = problems(model, world_size, shares)
    if found:
        raise ConfigError(f"pipeline: {found[0]}")
    layer, head = _sizes(model, storage)
    weights = [Fraction(share) for share in shares or (1,) * world_size]
    counts = [1] * world_size

    def with_one_more(rank: int) -> tuple[Fraction, int]:
        num_bytes = (counts[rank] + 1) * layer + head * (rank == MASTER_RANK)
        return num_bytes / weights[rank], rank

    # What fills a rank grows with each layer, so always taking the least full one is best.
    heap = [with_one_more(rank) for rank in range(world_size)]
    heapq.heapify(heap)
    for _ in range(model.num_layers - world_size):
        rank = heap[0][1]
        counts[rank] += 1
        heapq.heapreplace(heap, with_one_more(rank))
    return tuple(range(*bounds) for bounds in pairwise(accumulate(counts, initial=0)))


def problems(
    model: ModelConfig, world_size: int, shares: Sequence[float] | None = None
) -> list[str]:
    """The reasons why this model cannot be a pipeline of so many devices."""
    found = []
    if world_size > model.num_layers:
        found.append(
            f"{world_size} devices, but the model has {model.num_layers} layers; "
            f"use at most {model.num_layers} devices"
        )
    if shares is not None and len(shares) != world_size:
        found.append(f"shares: expected {world_size} numbers, one a device, got {len(shares)}")
    if shares is not None and not all(math.isfinite(s) and s > 0 for s in shares):
        found.append(
            f"shares: expected numbers > 0, since every device holds a layer, got {list(shares)}"
        )
    return found


def _sizes(model: ModelConfig, storage: str) -> tuple[int, int]:
    """Bytes of one layer's blocks (all layers are alike) and of the LM head."""
    blocks = block_bytes(model, make_shard_plan(model, 1), MASTER_RANK, storage)
    layer = sum(n for block, n in blocks if block.kind in ("attn", "ffn") and block.index == 0)
    return layer, sum(n for block, n in blocks if block.kind == "head")


def holds(rank: int, stage: range, block: BlockId) -> bool:
    """Whether a rank uses a block: its own layers, and on the master embedding and LM head."""
    if block.kind in ("embed", "head"):
        return rank == MASTER_RANK
    return block.index in stage


def stage_bytes(model: ModelConfig, rank: int, stage: range, storage: str) -> int:
    """Bytes of the weights that a rank keeps in memory."""
    layer, head = _sizes(model, storage)
    return len(stage) * layer + head * (rank == MASTER_RANK)


def fixed_bytes(model: ModelConfig, rank: int, stage: range, options: ComputeOptions) -> int:
    """Memory of a rank beside its weights; the rank before sends the step's input."""
    own = replace(model, num_layers=len(stage))
    parts = memory_parts(own, make_shard_plan(own, 1), MASTER_RANK, options)
    if rank != MASTER_RANK:
        parts = replace(parts, logits=0)
    return parts.total


def stage_peaks(
    model: ModelConfig,
    world_size: int,
    shares: Sequence[float] | None,
    storage: str,
    options: ComputeOptions,
) -> tuple[int, ...]:
    """Predict the peak memory of every rank, in bytes.

    Raises:
        ConfigError: As `make_stages`.
    """
    stages = make_stages(model, world_size, shares, storage)
    return tuple(
        stage_bytes(model, rank, stage, storage) + fixed_bytes(model, rank, stage, options)
        for rank, stage in enumerate(stages)
    )
