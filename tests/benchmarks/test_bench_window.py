"""How much of the disk's own rate the window gets, and what loading costs when computing is longer.

Window and plain O_DIRECT reads of the same files take turns within one run, so that a busy machine
slows both alike. The reference reads into as much memory as the window has; into a buffer that the
processor's cache holds, reads of files that the host caches are a third faster, which no program
that keeps what it reads can have.
"""

import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from tpi.weights.blockfile import BlockEntry
from tpi.weights.direct_io import read_rate_bps
from tpi.weights.layout import make_layout
from tpi.weights.shard import BlockId
from tpi.weights.window import Window

pytestmark = [pytest.mark.bench, pytest.mark.timeout(600)]

MIB = 1 << 20
WIDTH = 8192
# Rows that make blocks of 80 and 176 MiB in bfloat16: 12 layers are 3 GiB.
ROWS = {"attn": 5120, "ffn": 11264}
NUM_LAYERS = 12
REPEATS = 3


@pytest.fixture(scope="module")
def entries(tmp_path_factory: pytest.TempPathFactory) -> list[BlockEntry]:
    folder = tmp_path_factory.mktemp("blocks")
    # Small exponents: products of random bits must neither overflow nor be denormal.
    noise = torch.empty(32 * MIB, dtype=torch.bfloat16).normal_().view(torch.uint8).numpy()
    blocks = [BlockId(kind, i) for i in range(NUM_LAYERS) for kind in ROWS]
    return [write_block(folder, block, noise.tobytes()) for block in blocks]


def write_block(folder: Path, block: BlockId, noise: bytes) -> BlockEntry:
    layout = make_layout((("weight", "bfloat16", (ROWS[block.kind], WIDTH)),))
    entry = BlockEntry(block, folder / block.file_name, layout.num_bytes, "", layout.places)
    with entry.path.open("wb") as file:
        file.write(layout.header)
        left = layout.num_bytes - len(layout.header)
        while left:
            left -= file.write(noise[: min(left, len(noise))])
        file.flush()
        os.fsync(file.fileno())
    return entry


def cycle(window: Window, entries: list[BlockEntry], compute: Callable[[torch.Tensor], object]):
    for entry in entries:
        with window.hold(entry.id) as tensors:
            compute(tensors["weight"])


def window_seconds(
    entries: list[BlockEntry], size: int | None, compute: Callable[[torch.Tensor], object]
) -> float:
    """Seconds of one cycle in the steady state."""
    with Window(entries, window=size).start() as window:
        cycle(window, entries, compute)
        begin = time.perf_counter()
        cycle(window, entries, compute)
        return time.perf_counter() - begin


def say(text: str) -> None:
    sys.stdout.write(text + "\n")


def test_disk_bound_window_reads_at_nine_tenths_of_the_disks_own_rate(entries):
    torch.set_num_threads(1)
    x_K = torch.randn(WIDTH).bfloat16()
    paths = [entry.path for entry in entries]
    num_bytes = sum(entry.num_bytes for entry in entries)
    span_bytes = entries[0].num_bytes + entries[1].num_bytes

    def product(weight_NK: torch.Tensor) -> torch.Tensor:
        return torch.mv(weight_NK, x_K)

    def window_rate(size: int) -> float:
        return float(num_bytes / window_seconds(entries, size, product))

    def disk_rate(size: int) -> float:
        return read_rate_bps(paths, size * MIB, span_bytes)

    candidates: dict[str, Callable[[], float]] = {
        **{f"disk, requests of {size} MiB": partial(disk_rate, size) for size in (4, 16, 64)},
        "disk, 4 MiB into one place": partial(read_rate_bps, paths, 4 * MIB),
        **{f"window {size}": partial(window_rate, size) for size in (2, 4)},
    }
    rates: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(REPEATS + 1):
        for name, run in candidates.items():
            rate = run()
            if turn:  # the first turn warms up
                rates[name].append(rate / 1e9)
    median = {name: statistics.median(values) for name, values in rates.items()}
    disk = max(rate for name, rate in median.items() if "requests" in name)
    say(f"\nGB/s, median of {REPEATS}; share of the disk's rate")
    for name, rate in median.items():
        say(f"  {name:28} {rate:6.2f}  {rate / disk:5.2f}")
    assert median["window 2"] >= 0.9 * disk


def test_compute_bound_window_costs_at_most_a_tenth(entries):
    torch.set_num_threads(1)
    some = entries[:8]
    num_bytes = sum(entry.num_bytes for entry in some)
    loading_s = num_bytes / read_rate_bps([entry.path for entry in some])
    x_SK = torch.randn(rows_to_take(3 * loading_s, num_bytes), WIDTH).bfloat16()

    def product(weight_NK: torch.Tensor) -> torch.Tensor:
        return torch.mm(weight_NK, x_SK.T)

    seconds: dict[int | None, list[float]] = {2: [], None: []}
    for turn in range(REPEATS + 1):
        for size, values in seconds.items():
            value = window_seconds(some, size, product)
            if turn:
                values.append(value)
    streamed, resident = statistics.median(seconds[2]), statistics.median(seconds[None])
    say(
        f"\ncompute-bound: window 2 {streamed:.2f} s, all resident {resident:.2f} s, "
        f"loading alone {loading_s:.2f} s: ratio {streamed / resident:.3f}"
    )
    assert streamed <= 1.10 * resident


def rows_to_take(seconds: float, num_bytes: int) -> int:
    """Rows of input with which products over `num_bytes` of weights take about `seconds`."""
    weight_NK = torch.randn(2048, WIDTH).bfloat16()
    x_SK = torch.randn(512, WIDTH).bfloat16()
    torch.mm(weight_NK, x_SK.T)
    begin = time.perf_counter()
    torch.mm(weight_NK, x_SK.T)
    whole_s = (time.perf_counter() - begin) * num_bytes / (weight_NK.nbytes)
    return max(8, round(512 * seconds / whole_s))
