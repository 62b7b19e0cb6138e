"""How much memory a device needs, and which blocks to keep in what it has. Pure, no torch.

`memory_parts` adds up everything but the weights; `plan_memory` puts window and retained blocks
into what a budget leaves; `choose_window` joins the two for one rank. The engine follows it; its
VmHWM is then within 10 % of `peak_bytes`.
"""

import functools
from collections.abc import Sequence
from dataclasses import astuple, dataclass

from tpi.comm.allreduces.base import CHUNK_ELEMENTS
from tpi.comm.allreduces.registry import find_allreduce
from tpi.errors import ResourceError
from tpi.model_config import DTYPE_BYTES, ModelConfig
from tpi.options import ComputeOptions
from tpi.ranks import MASTER_RANK
from tpi.units import format_bytes
from tpi.weights.arena import least_arena_bytes, place
from tpi.weights.shard import BlockId, RankShare, ShardPlan, rank_blocks

# VmHWM of a rank beside weights, cache and activations, torch 2.13 (CPU build), one thread: import
# of torch 220 MiB, ours 2, code and pools that the first products bring in 16 to 18.
PROCESS_BYTES = 238 << 20
# Largest scratch of the matrix kernels: a tile that stored weights are converted into.
SCRATCH_BYTES = 1 << 20
# The order in which blocks are retained: Prop. 6 retains FFN blocks, the longest to load.
_RETAIN_ORDER = ("ffn", "attn", "head")


@dataclass(frozen=True, slots=True)
class MemoryParts:
    """Memory of one rank beside its weights, in bytes."""

    process: int  # the interpreter, torch and our code
    kv_cache: int  # of `max_tokens` positions; pages count once they are written
    activations: int  # the largest set of tensors alive within one block
    logits: int  # a row over the vocabulary and its copies while a token is picked (master)
    comm: int  # receive buffers of collectives
    scratch: int  # of the matrix kernels

    @property
    def total(self) -> int:
        """All of it."""
        return sum(astuple(self))


def memory_parts(
    config: ModelConfig, plan: ShardPlan, rank: int, options: ComputeOptions
) -> MemoryParts:
    """Return what a rank needs beside its weights."""
    share, is_master = plan.shares[rank], rank == MASTER_RANK
    item = DTYPE_BYTES[options.dtype]
    local_kv_size = share.local_num_kv_heads * config.head_size
    positions = options.max_batch * options.max_tokens
    logits = 4 * options.max_batch * config.vocab_size
    return MemoryParts(
        process=PROCESS_BYTES,
        kv_cache=2 * config.num_layers * positions * local_kv_size * item,
        activations=_activation_bytes(config, share, options),
        logits=3 * logits if is_master else 0,
        comm=_comm_bytes(config, plan.world_size, options, is_master=is_master),
        scratch=SCRATCH_BYTES,
    )


def _activation_bytes(config: ModelConfig, share: RankShare, options: ComputeOptions) -> int:
    """Count the tensors of (N, ...) that live at the same time, by reading `model/llama.py`."""
    width, ffn = config.hidden_size, share.local_ffn_size
    q_size = share.local_num_heads * config.head_size
    kv_size = share.local_num_kv_heads * config.head_size
    item = DTYPE_BYTES[options.dtype]
    # Throughout: the step's input and the residual stream in float32, the normed input of the
    # block, and the block's result in float32.
    always = 4 * width + 4 * width + item * width + 4 * width
    # Queries and keys before and after rotation, values, the attended values twice (one
    # transposed), and the result before it becomes float32.
    attn = item * (2 * q_size + 3 * kv_size + 2 * q_size + width)
    # Gate and up, then the result.
    feed = item * (2 * ffn + width)
    return options.step_rows * (always + max(attn, feed))


def _comm_bytes(
    config: ModelConfig, world_size: int, options: ComputeOptions, *, is_master: bool
) -> int:
    """Places for what others send, a chunk each; long vectors are summed chunk by chunk."""
    if world_size == 1:
        return 0
    chunk = 4 * min(options.step_rows * config.hidden_size, CHUNK_ELEMENTS)
    # The last sum of a step goes straight to the master, whatever the allreduce.
    places = (
        world_size - 1 if is_master else find_allreduce(options.allreduce).inbox_chunks(world_size)
    )
    packed = 2 * options.step_rows * config.hidden_size if options.wire_dtype == "bfloat16" else 0
    return (places + 1) * chunk + packed


def block_bytes(
    config: ModelConfig, plan: ShardPlan, rank: int, dtype: str
) -> tuple[tuple[BlockId, int], ...]:
    """Return the blocks of a rank in the order a step needs them, with the bytes of their files."""
    return tuple(
        (spec.id, spec.layout().num_bytes) for spec in rank_blocks(config, plan, rank, dtype)
    )


@dataclass(frozen=True, slots=True)
class WindowChoice:
    """What a rank keeps in memory."""

    window: int | None  # streamed blocks resident at once; None if all blocks stay
    retained: frozenset[BlockId]
    arena_bytes: int  # memory of the streamed blocks (of all, with window None)
    retained_bytes: int
    streamed_bytes_per_pass: int  # bytes read from disk in one step
    peak_bytes: int  # predicted for the process


def choose_window(
    config: ModelConfig,
    plan: ShardPlan,
    rank: int,
    blocks: Sequence[tuple[BlockId, int]],
    options: ComputeOptions,
) -> WindowChoice:
    """Decide for one rank what stays in memory, and predict its peak.

    `blocks` are its blocks and their bytes, in order; `embed` may be among them and is not held.

    Raises:
        ResourceError: The budget cannot work; the message has the least that would.
    """
    held = [(block, num_bytes) for block, num_bytes in blocks if block.kind != "embed"]
    fixed = memory_parts(config, plan, rank, options).total
    try:
        return plan_memory(
            tuple(held),
            window=options.window,
            memory_budget=options.memory_budget,
            fixed_bytes=fixed,
        )
    except ResourceError as exc:
        raise ResourceError(f"rank {rank}: {exc}") from exc


@functools.lru_cache(maxsize=32)  # most ranks of a plan are alike
def plan_memory(
    blocks: tuple[tuple[BlockId, int], ...],
    *,
    window: int | None,
    memory_budget: int | None,
    fixed_bytes: int,
) -> WindowChoice:
    """Pick window and retained blocks.

    Without a budget: `window` blocks, nothing retained. With one: everything if it fits; else the
    smallest arena that still loads ahead (window 2; window 1 if even that is too large), and as
    many retained blocks as the rest holds, spread evenly over the step.

    Source: retention is Prop. 6 of arXiv:2410.00531, carried on to attention blocks and head.

    Raises:
        ResourceError: The budget is below the least that would work.
    """
    sizes = [num_bytes for _, num_bytes in blocks]
    if memory_budget is None:
        return _choice(blocks, window, frozenset(), fixed_bytes)
    room = memory_budget - fixed_bytes
    if sum(sizes) <= room:
        return _choice(blocks, None, frozenset(), fixed_bytes)
    for size in (2, 1):
        if least_arena_bytes(sizes, size) <= room:
            return _choice(blocks, size, _retained(blocks, size, room), fixed_bytes)
    least = fixed_bytes + least_arena_bytes(sizes, 1)
    raise ResourceError(
        f"memory budget of {format_bytes(memory_budget)} is too small: the least that works is "
        f"{least} bytes ({format_bytes(least)}): {format_bytes(fixed_bytes)} for the process, "
        f"{format_bytes(least - fixed_bytes)} for the largest block"
    )


def _choice(
    blocks: Sequence[tuple[BlockId, int]],
    window: int | None,
    retained: frozenset[BlockId],
    fixed_bytes: int,
) -> WindowChoice:
    streamed = [num_bytes for block, num_bytes in blocks if block not in retained]
    retained_bytes = sum(num_bytes for _, num_bytes in blocks) - sum(streamed)
    if window is not None and window >= len(streamed):
        window = None  # what `Window` does too: a window over everything streams nothing
    arena_bytes = sum(streamed) if window is None else place(streamed, window).arena_bytes
    return WindowChoice(
        window=window,
        retained=retained,
        arena_bytes=arena_bytes,
        retained_bytes=retained_bytes,
        streamed_bytes_per_pass=0 if window is None else sum(streamed),
        peak_bytes=fixed_bytes + arena_bytes + retained_bytes,
    )


def _retained(blocks: Sequence[tuple[BlockId, int]], window: int, room: int) -> frozenset[BlockId]:
    """Retain what fits: evenly spread FFN blocks first, then attention, then head tiles."""
    kept: set[BlockId] = set()

    def fits(more: set[BlockId]) -> bool:
        streamed = [num_bytes for block, num_bytes in blocks if block not in kept | more]
        total = sum(num_bytes for _, num_bytes in blocks)
        return total - sum(streamed) + least_arena_bytes(streamed, window) <= room

    for kind in _RETAIN_ORDER:
        of_kind = [block for block, _ in blocks if block.kind == kind]
        count = len(of_kind)
        while count and not fits(spread(of_kind, count)):
            count -= 1
        kept |= spread(of_kind, count)
        # Blocks beside a retained one may fit where an even spread of as many does not.
        for block in of_kind:
            if block not in kept and fits({block}):
                kept.add(block)
    return frozenset(kept)


def spread(blocks: Sequence[BlockId], count: int) -> set[BlockId]:
    """Return `count` of the blocks, evenly spread, the first among them."""
    return {block for i, block in enumerate(blocks) if i * count % len(blocks) < count}
