"""Who owns what: the shares of all ranks, and the blocks and tensors that follow from them.

`make_shard_plan` divides attention heads and FFN columns among ranks; `rank_blocks` lists the
blocks of one rank in the order a step needs them, every tensor with the slice of the checkpoint
that it is cut from. All of it is arithmetic on `ModelConfig` (no files, no torch). The splitter,
the planner and the check of a shard folder call the same functions, so they agree.
"""

import functools
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate, pairwise
from typing import Annotated

from msgspec import Meta, Struct, to_builtins

from tpi.errors import ConfigError
from tpi.model_config import ModelConfig
from tpi.ranks import MASTER_RANK
from tpi.weights.layout import (
    PAGE_BYTES,
    TENSOR_ALIGN_BYTES,
    BlockLayout,
    align_up,
    make_layout,
    tensor_bytes,
)

MAX_WORLD_SIZE = 1024
# Rows of `down` that start at cache lines: bfloat16 matrix-vector products of torch 2.13 on one
# core of a Sapphire Rapids Xeon ran at 16.3-16.9 GB/s with 3664 or 3680 columns, at 15.4-15.7
# with 3669 or 3670.
FFN_GRANULE = 32
_MIN_GRANULES_PER_RANK = 16  # below it shares would be too coarse; columns are then cut singly
_MAX_TILE_BYTES = 32 << 20  # of the head, where the master holds no other block to compare with


@dataclass(frozen=True, slots=True, order=True)
class BlockId:
    """A block: `kind` is "embed", "attn", "ffn" or "head"; `index` the layer or head tile."""

    kind: str
    index: int

    @property
    def file_name(self) -> str:
        """The only name that the block's file may have."""
        number = "" if self.kind == "embed" else f"-{self.index:03d}"
        return f"{self.kind}{number}.safetensors"


class RankShare(Struct, frozen=True, forbid_unknown_fields=True):
    """One rank's query heads, KV heads and FFN columns, as half-open ranges."""

    q_start: int
    q_stop: int
    kv_start: int
    kv_stop: int
    ffn_start: int
    ffn_stop: int

    @property
    def local_num_heads(self) -> int:
        """Query heads of this rank."""
        return self.q_stop - self.q_start

    @property
    def local_num_kv_heads(self) -> int:
        """KV heads that this rank holds; other ranks may hold the same ones too."""
        return self.kv_stop - self.kv_start

    @property
    def local_ffn_size(self) -> int:
        """FFN columns of this rank."""
        return self.ffn_stop - self.ffn_start

    def local_kv_of_q(self, config: ModelConfig) -> tuple[int, ...]:
        """For each local query head, the index of its local KV head."""
        heads = range(self.q_start, self.q_stop)
        return tuple(q // config.q_per_kv - self.kv_start for q in heads)


class ShardPlan(Struct, frozen=True, forbid_unknown_fields=True):
    """The shares of all ranks, and the weights they were made from."""

    world_size: Annotated[int, Meta(ge=1, le=MAX_WORLD_SIZE)]
    weights: tuple[float, ...]
    shares: tuple[RankShare, ...]

    def digest(self) -> str:
        """SHA-256 over everything in the plan, as hex digits."""
        return hashlib.sha256(json.dumps(to_builtins(self), sort_keys=True).encode()).hexdigest()


def make_shard_plan(
    config: ModelConfig, world_size: int, weights: Sequence[float] | None = None
) -> ShardPlan:
    """Divide heads and FFN columns among ranks in proportion to `weights` (even if None).

    Heads are cut at KV-group boundaries while there are no more ranks with a share than KV
    heads; with more ranks they are cut one by one, and a KV head is held by every rank whose
    query heads use it. FFN columns are cut at multiples of 32 where they are many enough.
    Rounding is by largest remainder, ties to the lower rank.

    Raises:
        ConfigError: world_size or weights that make no plan.
    """
    if not 1 <= world_size <= MAX_WORLD_SIZE:
        raise ConfigError(f"devices: expected 1 to {MAX_WORLD_SIZE}, got {world_size}")
    weights = tuple(float(w) for w in weights) if weights is not None else (1.0,) * world_size
    if len(weights) != world_size:
        raise ConfigError(
            f"shares: expected {world_size} numbers, one a device, got {len(weights)}"
        )
    if not all(math.isfinite(w) and w >= 0 for w in weights) or not any(weights):
        raise ConfigError(f"shares: expected numbers >= 0, one of them > 0, got {list(weights)}")
    group = config.q_per_kv
    unit = group if sum(w > 0 for w in weights) <= config.num_kv_heads else 1
    q_ranges = _ranges(config.num_heads, unit, weights)
    ffn_size, least = config.ffn_size, FFN_GRANULE * _MIN_GRANULES_PER_RANK * world_size
    ffn_unit = FFN_GRANULE if ffn_size % FFN_GRANULE == 0 and ffn_size >= least else 1
    ffn_ranges = _ranges(ffn_size, ffn_unit, weights)
    shares = tuple(
        RankShare(
            q_start=q_start,
            q_stop=q_stop,
            kv_start=q_start // group,
            # A rank without heads holds no KV head either.
            kv_stop=-(-q_stop // group) if q_stop > q_start else q_start // group,
            ffn_start=ffn_start,
            ffn_stop=ffn_stop,
        )
        for (q_start, q_stop), (ffn_start, ffn_stop) in zip(q_ranges, ffn_ranges, strict=True)
    )
    return ShardPlan(world_size, weights, shares)


def _ranges(total: int, unit: int, weights: Sequence[float]) -> list[tuple[int, int]]:
    counts = largest_remainder(total // unit, weights)
    return list(pairwise(accumulate((c * unit for c in counts), initial=0)))


def largest_remainder(total: int, weights: Sequence[float]) -> list[int]:
    """Whole numbers that sum to `total`, each within 1 of its exact share of it.

    Exact fractions: the result must be the same on every machine.
    """
    whole = sum(map(Fraction, weights))
    quotas = [Fraction(w) * total / whole for w in weights]
    counts = [math.floor(q) for q in quotas]
    by_remainder = sorted(range(len(quotas)), key=lambda i: (counts[i] - quotas[i], i))
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return counts


@dataclass(frozen=True, slots=True)
class SourceSlice:
    """A rectangle of a checkpoint tensor: rows and columns as half-open ranges.

    `shape` is that of the whole tensor in the checkpoint. `cols` is None for a vector.
    """

    name: str
    shape: tuple[int, ...]
    rows: tuple[int, int]
    cols: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor of a block file and where it is cut from."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    source: SourceSlice


@dataclass(frozen=True, slots=True)
class BlockSpec:
    """A block's tensors, in the order in which its file holds them."""

    id: BlockId
    tensors: tuple[TensorSpec, ...]

    def layout(self) -> BlockLayout:
        """Where the tensors lie in the block's file."""
        return make_layout(tuple((t.name, t.dtype, t.shape) for t in self.tensors))


_Range = tuple[int, int]


def _cut(
    name: str, source: str, shape: tuple[int, ...], dtype: str,
    rows: _Range | None = None, cols: _Range | None = None,
) -> TensorSpec:  # fmt: skip
    """A tensor cut from `source`, which has `shape`; whole where no range is given."""
    rows = rows or (0, shape[0])
    if len(shape) == 2:
        cols = cols or (0, shape[1])
    spans = [rows] if cols is None else [rows, cols]
    cut = tuple(stop - start for start, stop in spans)
    return TensorSpec(name, cut, dtype, SourceSlice(source, shape, rows, cols))


@functools.lru_cache(maxsize=32)  # a plan asks again and again for the same few ranks
def rank_blocks(
    config: ModelConfig, plan: ShardPlan, rank: int, dtype: str
) -> tuple[BlockSpec, ...]:
    """The blocks of one rank in the order a step needs them.

    The master: embed, attn 0, ffn 0, ..., head tiles; a worker: attn 0, ffn 0, .... A rank
    without heads has no attn blocks, one without columns no ffn blocks.
    """
    share = plan.shares[rank]
    # A bias is on one rank, the first with a share, so that the sum over ranks has it once.
    out_bias = not any(s.local_num_heads for s in plan.shares[:rank])
    down_bias = not any(s.local_ffn_size for s in plan.shares[:rank])
    blocks: list[BlockSpec] = []
    for layer in range(config.num_layers):
        if share.local_num_heads:
            blocks.append(_attn_block(config, share, layer, dtype, out_bias=out_bias))
        if share.local_ffn_size:
            blocks.append(_ffn_block(config, share, layer, dtype, down_bias=down_bias))
    if rank != MASTER_RANK:
        return tuple(blocks)
    shape = (config.vocab_size, config.hidden_size)
    embed = _cut("weight", "model.embed_tokens.weight", shape, dtype)
    return BlockSpec(BlockId("embed", 0), (embed,)), *blocks, *_head_tiles(config, blocks, dtype)


def _attn_block(
    config: ModelConfig, share: RankShare, layer: int, dtype: str, *, out_bias: bool
) -> BlockSpec:
    width, size = config.hidden_size, config.head_size
    prefix = f"model.layers.{layer}."
    attn = prefix + "self_attn."
    q = (share.q_start * size, share.q_stop * size)
    kv = (share.kv_start * size, share.kv_stop * size)
    q_size, kv_size = config.num_heads * size, config.num_kv_heads * size
    tensors = [
        _cut("norm", prefix + "input_layernorm.weight", (width,), dtype),
        _cut("q", attn + "q_proj.weight", (q_size, width), dtype, q),
        _cut("k", attn + "k_proj.weight", (kv_size, width), dtype, kv),
        _cut("v", attn + "v_proj.weight", (kv_size, width), dtype, kv),
        _cut("o", attn + "o_proj.weight", (width, q_size), dtype, cols=q),
    ]
    if config.qkv_bias:
        tensors += [
            _cut("q_bias", attn + "q_proj.bias", (q_size,), dtype, q),
            _cut("k_bias", attn + "k_proj.bias", (kv_size,), dtype, kv),
            _cut("v_bias", attn + "v_proj.bias", (kv_size,), dtype, kv),
        ]
    if config.out_bias and out_bias:
        tensors.append(_cut("o_bias", attn + "o_proj.bias", (width,), dtype))
    if config.qk_norm:
        tensors += [
            _cut("q_norm", attn + "q_norm.weight", (size,), dtype),
            _cut("k_norm", attn + "k_norm.weight", (size,), dtype),
        ]
    return BlockSpec(BlockId("attn", layer), tuple(tensors))


def _ffn_block(
    config: ModelConfig, share: RankShare, layer: int, dtype: str, *, down_bias: bool
) -> BlockSpec:
    width, ffn = config.hidden_size, config.ffn_size
    prefix = f"model.layers.{layer}."
    mlp = prefix + "mlp."
    cut = (share.ffn_start, share.ffn_stop)
    tensors = [
        _cut("norm", prefix + "post_attention_layernorm.weight", (width,), dtype),
        _cut("gate", mlp + "gate_proj.weight", (ffn, width), dtype, cut),
        _cut("up", mlp + "up_proj.weight", (ffn, width), dtype, cut),
        _cut("down", mlp + "down_proj.weight", (width, ffn), dtype, cols=cut),
    ]
    if config.ffn_bias:
        tensors += [
            _cut("gate_bias", mlp + "gate_proj.bias", (ffn,), dtype, cut),
            _cut("up_bias", mlp + "up_proj.bias", (ffn,), dtype, cut),
        ]
        if down_bias:
            tensors.append(_cut("down_bias", mlp + "down_proj.bias", (width,), dtype))
    return BlockSpec(BlockId("ffn", layer), tuple(tensors))


def _head_tiles(
    config: ModelConfig, blocks: Sequence[BlockSpec], dtype: str
) -> tuple[BlockSpec, ...]:
    """Cut the LM head into row tiles that fit wherever an attn or ffn block of the master fits.

    No larger than the smaller kind, so that two tiles, or a tile beside either kind, need no
    more of the arena than attn + ffn.
    """
    vocab, width = config.vocab_size, config.hidden_size
    source = "model.embed_tokens.weight" if config.tied_embeddings else "lm_head.weight"
    row_bytes = tensor_bytes(dtype, (width,))
    norm_bytes = align_up(row_bytes, TENSOR_ALIGN_BYTES)  # tile 0 holds the final norm too
    most_rows = max((_tile_limit(blocks) - PAGE_BYTES - norm_bytes) // row_bytes, 1)
    num_tiles = -(-vocab // most_rows)
    bounds = [vocab * i // num_tiles for i in range(num_tiles + 1)]
    tiles = [[_cut("weight", source, (vocab, width), dtype, rows)] for rows in pairwise(bounds)]
    tiles[0].insert(0, _cut("norm", "model.norm.weight", (width,), dtype))
    return tuple(BlockSpec(BlockId("head", i), tuple(tile)) for i, tile in enumerate(tiles))


def _tile_limit(blocks: Sequence[BlockSpec]) -> int:
    largest: dict[str, int] = {}
    for block in blocks:
        num_bytes = block.layout().num_bytes
        largest[block.id.kind] = max(largest.get(block.id.kind, 0), num_bytes)
    return min(largest.values(), default=_MAX_TILE_BYTES)
