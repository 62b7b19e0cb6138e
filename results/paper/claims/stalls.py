"""What Propositions 3, 4 and 6 and the window's replay predict of a run's waits.

The times of a layer are those of a mean device: computing and allreduces from the counters of the
request, loads from the sizes of the blocks and the disk's rate. As in the propositions, the head is
left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from results.paper.claims.verdict import percent
from results.records.schema import Repeat, RunRecord
from tpi.model_config import ModelConfig, load_preset, preset_names
from tpi.planner.memory import block_bytes
from tpi.planner.propositions import (
    LayerTimes,
    published_loose_steady_state,
    published_retention_steady_state,
    published_stalls,
    published_tight_steady_state,
)
from tpi.planner.window_replay import BlockTimes, predict_step
from tpi.weights.shard import make_shard_plan


@dataclass(frozen=True, slots=True)
class Prediction:
    """What is predicted of a run's steady state; shares are of a step, waiting for weights."""

    times: LayerTimes
    is_loose: bool  # Prop. 3
    is_tight: bool  # Prop. 4
    # Prop. 6: the largest T for which one resident FFN block of every T hides the loads, if any.
    period: int | None
    published_share: float  # by the recurrence in the proof of Prop. 3
    replay_share: float  # by `predict_step`, with the window's size

    def __str__(self) -> str:
        loose, tight = ("holds" if held else "fails" for held in (self.is_loose, self.is_tight))
        prop_6 = "not even with all FFN blocks resident"
        if self.period is not None:
            prop_6 = f"one FFN block of every {self.period} resident would hide the loads"
        return (
            f"Prop. 3 {loose} and predicts {percent(self.published_share)}, Prop. 4 {tight}, "
            f"Prop. 6: {prop_6}; the window's replay predicts {percent(self.replay_share)}"
        )


def predict(times: LayerTimes, num_layers: int, window: int) -> Prediction:
    """Everything that follows from the times of one layer."""
    step_s = num_layers * (times.attn_s + times.ffn_s + 2 * times.allreduce_s)
    stalled_s = sum(published_stalls(times, num_layers))
    layer = (
        BlockTimes(times.attn_s, times.allreduce_s, times.attn_load_s),
        BlockTimes(times.ffn_s, times.allreduce_s, times.ffn_load_s),
    )
    replay = predict_step(layer * num_layers, window)
    periods = (
        period
        for period in range(num_layers, 0, -1)
        if published_retention_steady_state(times, num_layers, period)
    )
    return Prediction(
        times=times,
        is_loose=published_loose_steady_state(times, num_layers),
        is_tight=published_tight_steady_state(times),
        period=next(periods, None),
        published_share=stalled_s / (step_s + stalled_s),
        replay_share=replay.stall_s / replay.step_s,
    )


def predict_run(record: RunRecord, repeats: Sequence[Repeat]) -> Prediction | str:
    """The prediction for a run of `tpi`, or why there is none."""
    if reason := _why_not(record):
        return reason
    rate_bps = _disk_rate_bps(record)
    if rate_bps is None:
        return "no disk's rate was held"
    config, stored = load_preset(record.config.model.name), record.config.weights.dtype
    if stored != "auto":
        config = replace(config, dtype=stored)
    times, window = layer_times(config, repeats, rate_bps), record.config.window
    if times is None or window is None:
        return "not every device counted its times"
    return predict(times, config.num_layers, window)


def _why_not(record: RunRecord) -> str:
    """What the propositions leave out and this run has; empty where they fit it."""
    model, config = record.config.model, record.config
    if model.name not in preset_names() or model.path is not None:
        return "only the shapes and dtypes of presets are known"
    if config.options.get("memory_budget") is not None:
        return "a memory budget retains blocks, and the record does not say which"
    if config.options.get("shares") is not None:
        return "devices have uneven shares, so that none is the mean one"
    if config.window is None:
        return "its window is no number of blocks"
    return ""


def layer_times(
    config: ModelConfig, repeats: Sequence[Repeat], rate_bps: float
) -> LayerTimes | None:
    """Times of a layer on a mean device that reads `rate_bps`; None where one did not count."""
    good = [repeat for repeat in repeats if repeat.status == "ok" and repeat.tokens]
    sums = [_per_step(repeat) for repeat in good]
    known = [each for each in sums if each is not None]
    if not known or len(known) < len(good):
        return None
    compute_s, allreduce_s = (sum(column) / len(known) for column in zip(*known, strict=True))
    world_size, layers = len(good[0].start_ns), config.num_layers
    # A worker's: the master has the same layers.
    plan = make_shard_plan(config, world_size)
    sizes = block_bytes(config, plan, world_size - 1, config.dtype)
    attn, ffn = (
        next(size for block, size in sizes if block.kind == kind) for kind in ("attn", "ffn")
    )
    return LayerTimes(
        attn_s=compute_s / layers * attn / (attn + ffn),
        ffn_s=compute_s / layers * ffn / (attn + ffn),
        allreduce_s=allreduce_s / (2 * layers),
        attn_load_s=attn / rate_bps,
        ffn_load_s=ffn / rate_bps,
    )


def _per_step(repeat: Repeat) -> tuple[float, float] | None:
    """Computing and allreduces of a mean step of a mean device, undilated."""
    names = ("compute_s", "allreduce_s")
    counters = repeat.counters(names)
    if not counters:
        return None
    share = len(counters) * len(repeat.tokens) * repeat.dilation
    compute_s, allreduce_s = (sum(c.number(name) for c in counters) / share for name in names)
    return compute_s, allreduce_s


def _disk_rate_bps(record: RunRecord) -> float | None:
    """Undilated, of the slowest device; None where no limit held."""
    limits = record.calibration.limits
    rates = [each.read_bps for each in limits if each.read_bps]
    if not rates or len(rates) < len(limits):
        return None
    return min(rates) * record.calibration.dilation.factor
