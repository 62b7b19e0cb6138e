"""Peak memory of a device as the authors' implementation has it, from a model's shape.

Everything but one constant follows from what their published code does:

- A block (embedding, attention and FFN of every layer, norm and head) is one file in the
  checkpoint's 16-bit type, read whole and then cast to float32: while it loads, both are there.
- The master holds the whole embedding and the whole head; heads are dealt evenly by KV group with
  the remainder to the last ranks, FFN columns evenly whatever the heads.
- One thread loads blocks in a cycle over all tokens while fewer than `window` are resident, and a
  block is freed only when the one after it has been used. So a block is loaded beside the
  `window - 1` before it, and the largest such set is the peak: mostly head and next embedding.
- Freed memory is taken to go back to the system at once; the peak is VmHWM, which does not fall.
- A table's number is that of the largest process.

The constant, the process beside its weights, is fitted on Table 1 alone, each time this is asked.
Read `published_peak_bytes`; `lab published-memory` prints the comparison.
"""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from results.cells import Cell
from results.reported import reported_cells
from tpi.config import DTYPE_BYTES, ModelConfig, load_preset
from tpi.errors import ConfigError
from tpi.ranks import MASTER_RANK

FITTED_ON = "table1"
FITTED_DEVICES = 8
WINDOWS = {"table1": 2, "table2": 2, "table6": 4}  # with the scheduler on


@dataclass(frozen=True, slots=True)
class Setting:
    """What one memory cell of the paper is of; `window` None is the scheduler off."""

    model: str
    devices: int
    window: int | None


def setting_of(cell: Cell) -> Setting:
    """Read row and column (`on`, `off/4`) of a memory cell of Tables 1, 2 and 6."""
    scheduler, _, devices = cell.place.column.partition("/")
    if cell.place.exhibit not in WINDOWS or scheduler not in ("on", "off"):
        raise ConfigError(f"{cell.place}: no memory cell of {', '.join(WINDOWS)}")
    window = WINDOWS[cell.place.exhibit] if scheduler == "on" else None
    return Setting(cell.place.row, int(devices or FITTED_DEVICES), window)


def memory_cells(exhibit: str) -> tuple[Cell, ...]:
    """The memory that the paper reports in one table."""
    return tuple(
        cell
        for cell in reported_cells()
        if cell.place.exhibit == exhibit
        and cell.place.metric == "peak_memory_bytes"
        and cell.value is not None
    )


def deal(total: int, world_size: int) -> tuple[int, ...]:
    """Divide as the authors' code does: evenly, the remainder one each to the last ranks."""
    each, left = divmod(total, world_size)
    return tuple(each + (rank >= world_size - left) for rank in range(world_size))


def block_bytes(config: ModelConfig, world_size: int, rank: int) -> tuple[int, ...]:
    """Return the blocks of a rank in float32, in the order of a step."""
    width = config.hidden_size
    kv_heads = deal(config.num_kv_heads, world_size)[rank]
    heads = kv_heads * config.q_per_kv
    attn = 2 * (heads + kv_heads) * config.head_size * width + width
    ffn = 3 * width * deal(config.ffn_size, world_size)[rank] + width
    blocks = [4 * attn, 4 * ffn] * config.num_layers
    if rank != MASTER_RANK:
        return tuple(blocks)
    table = 4 * width * config.vocab_size
    return (table, *blocks, table + 4 * width)


def largest_set(blocks: Sequence[int], window: int | None, cast_share: float) -> float:
    """Return the most bytes of blocks that are there at once.

    Args:
        blocks: Of one rank, in the order of a step.
        window: Blocks resident at once, the one that loads among them; None if all stay.
        cast_share: Of a block's bytes what its stored form takes beside it while it loads.
    """
    if window is None or window >= len(blocks):
        before, most = 0, 0.0
        for size in blocks:
            most = max(most, before + size * (1 + cast_share))
            before += size
        return most
    cycle = (*blocks[-(window - 1) :], *blocks) if window > 1 else tuple(blocks)
    return max(
        sum(cycle[end - window : end]) + cast_share * cycle[end - 1]
        for end in range(window, len(cycle) + 1)
    )


@functools.cache
def weight_peak_bytes(setting: Setting) -> float:
    """Return the largest rank's weights at their peak, without the process."""
    config = load_preset(setting.model)
    # Casting float32 to float32 makes no copy.
    cast_share = DTYPE_BYTES[config.dtype] / 4 if config.dtype != "float32" else 0.0
    ranks = {block_bytes(config, setting.devices, rank) for rank in range(setting.devices)}
    return max(largest_set(blocks, setting.window, cast_share) for blocks in ranks)


def fit_process_bytes(cells: Iterable[Cell]) -> float:
    """Return the constant that makes the squares of the relative errors least, in closed form."""
    above = weight = 0.0
    for cell in cells:
        if cell.value is not None:
            above += (cell.value - weight_peak_bytes(setting_of(cell))) / cell.value**2
            weight += 1 / cell.value**2
    if weight == 0.0:
        raise ConfigError("published memory: no cell to fit on")
    return above / weight


@functools.cache
def process_bytes() -> float:
    """The constant: fitted on the 14 memory cells of Table 1."""
    return fit_process_bytes(memory_cells(FITTED_ON))


def published_peak_bytes(setting: Setting) -> float:
    """Predict the peak memory per device of the authors' implementation."""
    return weight_peak_bytes(setting) + process_bytes()
