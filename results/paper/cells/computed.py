"""Cells that follow from a model's shape and a formula alone.

`source` tells several cells of one place apart: "as published" is the authors' implementation,
"formula" and "published: hops" are the paper's own formulas, "ours" is what `tpi` makes of it.
"""

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace

from results.paper.authors_model.memory import (
    WINDOWS,
    CellSetting,
    memory_cells,
    published_peak_bytes,
    setting_of,
)
from results.paper.cell import Cell, Place
from results.paper.values.paper_values import reported_cells
from tpi.comm.allreduces.registry import find_allreduce
from tpi.model_config import ModelConfig, load_preset
from tpi.options import ComputeOptions
from tpi.planner.memory import block_bytes, choose_window
from tpi.planner.propositions import published_block_bytes
from tpi.ranks import MASTER_RANK
from tpi.weights.shard import BlockId, make_shard_plan, rank_blocks

AS_PUBLISHED, OURS, FORMULA, HOPS = "as published", "ours", "formula", "published: hops"
OURS_32K = "ours: 32 KiB"  # figure 3 has 4 bytes; this is the payload of a 70B model
# The paper gives neither prompt nor output length; this is the room for both.
_MAX_TOKENS = 128
_TABLE4_MODEL, _TABLE4_DEVICES = "llama2-7b", 4
_FIGURE1_MODEL = "llama3.1-8b"
# Klonet: four links between any two devices, 300 Mbit/s, 8 devices.
_HOPS_PER_PATH, _RATE_BPS, _DEVICES = 4, 300e6, 8
_PAYLOADS = {OURS: 4, OURS_32K: 32 << 10}


@functools.cache
def computed_cells() -> tuple[Cell, ...]:
    """Every computed cell, exhibit by exhibit."""
    return (
        *(
            found
            for exhibit in WINDOWS
            for cell in memory_cells(exhibit)
            for found in _both_memories(cell.place, setting_of(cell))
        ),
        *_block_sizes(),
        *_models(),
        *_memory_over_devices(),
        *_allreduce_over_latency(),
    )


def _computed(place: Place, value: float, source: str, detail: str) -> Cell:
    return Cell(place, "computed", value=float(value), source=source, detail=detail)


def _both_memories(place: Place, setting: CellSetting) -> Iterator[Cell]:
    window = "all blocks resident" if setting.window is None else f"window {setting.window}"
    published = (
        f"{window}; whole embedding and head, blocks freed one late, float32 made of a 16-bit "
        "copy; one constant fitted on Table 1"
    )
    ours = f"{window}; weights held in 16 bits, computed in float32, {_MAX_TOKENS} tokens"
    yield _computed(place, published_peak_bytes(setting), AS_PUBLISHED, published)
    yield _computed(place, ours_peak_bytes(setting), OURS, ours)


@functools.cache
def ours_peak_bytes(setting: CellSetting, rank: int = MASTER_RANK) -> int:
    """Predict the peak memory of a rank of `tpi`, 16-bit storage, float32 compute.

    The master's is the largest: it has the larger shares, and head and logits beside them.
    """
    config = load_preset(setting.model)
    plan = make_shard_plan(config, setting.devices)
    blocks = _stored_blocks(setting.model, setting.devices, rank)
    options = ComputeOptions(window=setting.window, max_tokens=_MAX_TOKENS)
    return choose_window(config, plan, rank, blocks, options).peak_bytes


@functools.cache  # two windows and the resident form of each
def _stored_blocks(model: str, devices: int, rank: int) -> tuple[tuple[BlockId, int], ...]:
    config = load_preset(model)
    return block_bytes(config, make_shard_plan(config, devices), rank, config.dtype)


def _block_sizes() -> Iterator[Cell]:
    config = load_preset(_TABLE4_MODEL)
    formula = published_block_bytes(
        config, config.num_kv_heads / _TABLE4_DEVICES, config.ffn_size / _TABLE4_DEVICES
    )
    plan = make_shard_plan(config, _TABLE4_DEVICES)
    ours = dict.fromkeys(formula, 0)
    rows = {"embed": "preprocess", "attn": "attention", "ffn": "ffn", "head": "postprocess"}
    for block, num_bytes in block_bytes(config, plan, 0, "float32"):
        if block.kind == "head" or block.index == 0:  # one layer; all tiles of the head
            ours[rows[block.kind]] += num_bytes
    notes = {
        "preprocess": "; on disk: it is read by row and never held",
        "postprocess": "; in tiles that are streamed like other blocks",
    }
    for row, value in formula.items():
        place = Place("table4", row, "size", "size_bytes")
        yield _computed(place, value, FORMULA, "the formula printed in Table 4, share 0.25")
        yield _computed(place, ours[row], OURS, f"bytes of the file{notes.get(row, '')}")


@functools.cache
def num_params(config: ModelConfig) -> int:
    """Count a model's weights, from the tensors of its blocks."""
    plan = make_shard_plan(config, 1)
    blocks = rank_blocks(config, plan, 0, "float32")
    return sum(math.prod(tensor.shape) for block in blocks for tensor in block.tensors)


_SHAPE: dict[str, Callable[[ModelConfig], int]] = {
    "layers": lambda config: config.num_layers,
    "params": num_params,
    "hidden": lambda config: config.hidden_size,
    "heads": lambda config: config.num_heads,
    "kv_heads": lambda config: config.num_kv_heads,
    "required": lambda config: 4 * num_params(config),
}


def _models() -> Iterator[Cell]:
    for cell in reported_cells():
        place = cell.place
        if place.exhibit == "table5":
            value = _SHAPE[place.column](load_preset(place.row))
            detail = "float32 weights alone" if place.column == "required" else "the model's config"
            yield _computed(place, value, OURS, detail)


def _memory_over_devices() -> Iterator[Cell]:
    weights = 4 * num_params(load_preset(_FIGURE1_MODEL))
    for devices in (1, 2, 4):
        place = Place("figure1c", str(devices), "theoretical", "peak_memory_bytes")
        detail = "float32 weights divided by the devices"
        yield _computed(place, weights / devices, FORMULA, detail)
        for column, window in (("tensor-parallel", None), ("tpi", WINDOWS["table2"])):
            setting = CellSetting(_FIGURE1_MODEL, devices, window)
            yield from _both_memories(replace(place, column=column), setting)


def _allreduce_over_latency() -> Iterator[Cell]:
    for cell in reported_cells():
        place = cell.place
        if place.exhibit != "figure3":
            continue
        hop_s, allreduce = float(place.row) / 1e3, find_allreduce(place.column)
        detail = "links passed one after another, times their latency; no payload"
        yield _computed(place, allreduce.published_link_s(hop_s=hop_s), HOPS, detail)
        for source, num_bytes in _PAYLOADS.items():
            value = allreduce.cost_s(
                world_size=_DEVICES,
                num_bytes=num_bytes,
                delay_s=_HOPS_PER_PATH * hop_s,
                rate_bps=_RATE_BPS,
            )
            detail = f"{num_bytes} bytes pass each device's port one after another, 300 Mbit/s"
            yield _computed(place, value, source, detail)
