"""What each device will hold, need and wait for: the planner asked for every rank. Pure.

Memory follows from the model's shape; times from rates or from measured times of one layer.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from tpi.comm.allreduces.registry import find_allreduce
from tpi.model_config import DTYPE_BYTES, ModelConfig
from tpi.options import ComputeOptions
from tpi.planner.memory import WindowChoice, block_bytes, choose_window
from tpi.planner.propositions import (
    LayerTimes,
    ours_tight_steady_state,
    published_loose_steady_state,
    published_peak_bytes,
    published_tight_steady_state,
)
from tpi.planner.window_replay import BlockTimes, predict_step
from tpi.ranks import MASTER_RANK
from tpi.weights.shard import BlockId, ShardPlan, make_shard_plan


@dataclass(frozen=True, slots=True)
class Rates:
    """How fast a device is; the defaults are round numbers, to be replaced by measured ones."""

    disk_bps: float = 1e9  # bytes a second
    compute_bps: float = 8e9  # bytes of stored weights a second through matrix-vector products
    link_delay_s: float = 0.001  # one way between two devices
    link_bps: float = 300e6  # bits a second of a device's port


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """What `tpi plan` is asked about; `times` (measured) takes the place of `rates`."""

    devices: int
    shares: tuple[float, ...] | None = None
    storage: str = "bfloat16"
    compute: ComputeOptions = field(default_factory=ComputeOptions)
    rates: Rates = Rates()
    times: LayerTimes | None = None


@dataclass(frozen=True, slots=True)
class DeviceRow:
    """The plan of one device; `published_*` is what the paper's formulas say of it."""

    rank: int
    num_heads: int
    num_kv_heads: int
    ffn_columns: int
    shard_bytes: int
    window: int | None
    retained: dict[str, int]
    arena_bytes: int
    retained_bytes: int
    streamed_bytes_per_step: int
    peak_bytes: int
    step_s: float
    stall_s: float
    is_steady: bool
    ours_tight: bool
    published_loose: bool
    published_tight: bool
    published_peak_bytes: int


@dataclass(frozen=True, slots=True)
class PlanReport:
    """All devices; a step of all takes as long as that of the slowest."""

    model: str
    options: PlanOptions
    allreduce_s: float
    rows: tuple[DeviceRow, ...]

    @property
    def step_s(self) -> float:
        """Predicted seconds of one decoded token."""
        return max(row.step_s for row in self.rows)


def make_report(model: str, config: ModelConfig, options: PlanOptions) -> PlanReport:
    """Plan every device.

    Raises:
        ConfigError: Devices or shares that make no plan.
        ResourceError: The memory cannot work; the message has the least that would.
    """
    plan = make_shard_plan(config, options.devices, options.shares)
    if options.times is not None:
        allreduce_s = options.times.allreduce_s
    else:
        allreduce_s = find_allreduce(options.compute.allreduce).cost_s(
            world_size=options.devices,
            num_bytes=config.hidden_size * DTYPE_BYTES[options.compute.wire_dtype],
            delay_s=options.rates.link_delay_s,
            rate_bps=options.rates.link_bps,
        )
    rows = [_row(config, plan, rank, options, allreduce_s) for rank in range(options.devices)]
    return PlanReport(model, options, allreduce_s, tuple(rows))


def _row(
    config: ModelConfig, plan: ShardPlan, rank: int, options: PlanOptions, allreduce_s: float
) -> DeviceRow:
    blocks = block_bytes(config, plan, rank, options.storage)
    held = [(block, num_bytes) for block, num_bytes in blocks if block.kind != "embed"]
    share, is_master = plan.shares[rank], rank == MASTER_RANK
    choice = choose_window(config, plan, rank, blocks, options.compute)
    layer = options.times or _layer_times(held, options.rates, allreduce_s)
    step = predict_step(_block_times(held, choice, layer), choice.window)
    window = choice.window or len(held)
    part = share.local_num_heads / config.num_heads
    return DeviceRow(
        rank=rank,
        num_heads=share.local_num_heads,
        num_kv_heads=share.local_num_kv_heads,
        ffn_columns=share.local_ffn_size,
        shard_bytes=sum(num_bytes for _, num_bytes in blocks),
        window=choice.window,
        retained=dict(Counter(block.kind for block in choice.retained)),
        arena_bytes=choice.arena_bytes,
        retained_bytes=choice.retained_bytes,
        streamed_bytes_per_step=choice.streamed_bytes_per_pass,
        peak_bytes=choice.peak_bytes,
        step_s=step.step_s,
        stall_s=step.stall_s,
        is_steady=step.is_steady,
        ours_tight=ours_tight_steady_state(layer),
        published_loose=published_loose_steady_state(layer, config.num_layers),
        published_tight=published_tight_steady_state(layer),
        published_peak_bytes=round(published_peak_bytes(config, part, window, is_master=is_master)),
    )


def _layer_times(
    held: Sequence[tuple[BlockId, int]], rates: Rates, allreduce_s: float
) -> LayerTimes:
    """Return the times of one layer at the given rates."""
    size = {block.kind: num_bytes for block, num_bytes in held}
    attn, ffn = size.get("attn", 0), size.get("ffn", 0)
    return LayerTimes(
        attn_s=attn / rates.compute_bps,
        ffn_s=ffn / rates.compute_bps,
        allreduce_s=allreduce_s,
        attn_load_s=attn / rates.disk_bps,
        ffn_load_s=ffn / rates.disk_bps,
    )


def _block_times(
    held: Sequence[tuple[BlockId, int]], choice: WindowChoice, layer: LayerTimes
) -> list[BlockTimes]:
    """Return the blocks as the replay wants them; head tiles go at the rate of the layer's bytes.

    A rank that lacks a kind of block still takes part in its allreduce; that wait belongs to the
    block before and is left out here, as it makes stalls shorter.
    """
    size = {block.kind: num_bytes for block, num_bytes in held}
    layer_bytes = max(1, size.get("attn", 0) + size.get("ffn", 0))
    compute_s = (layer.attn_s + layer.ffn_s) / layer_bytes
    load_s = (layer.attn_load_s + layer.ffn_load_s) / layer_bytes

    def times(block: BlockId, num_bytes: int) -> tuple[float, float, float]:
        if block.kind == "attn":
            return layer.attn_s, layer.allreduce_s, layer.attn_load_s
        if block.kind == "ffn":
            return layer.ffn_s, layer.allreduce_s, layer.ffn_load_s
        return num_bytes * compute_s, 0.0, num_bytes * load_s

    every = [(block, *times(block, num_bytes)) for block, num_bytes in held]
    return [BlockTimes(c, a, None if b in choice.retained else load) for b, c, a, load in every]
