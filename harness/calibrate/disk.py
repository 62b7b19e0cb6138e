"""The costs of the disk: blocks read past the page cache, as weights are.

Blocks of several sizes at random places of one file give the disk's rate and the fixed cost of a
request; the thread's clock gives the loader's own processor time. Small reads, of the size in which
Linux swaps in, stand for swap, which not every host has.
"""

import contextlib
import os
import random
import tempfile
import time
from pathlib import Path
from statistics import median

from harness.calibrate.fits import fit_line, medians
from harness.calibrate.sizes import MIB, Sizes
from tpi.errors import ResourceError, map_errors
from tpi.weights.arena import Arena
from tpi.weights.direct_io import DirectFile
from tpi.weights.layout import PAGE_BYTES

_SWAP_READ_BYTES = 8 * PAGE_BYTES  # vm.page-cluster = 3: eight pages at once
_SWAP_READS = 64
_MOST_READS = 8


def measure_disk(folder: Path, sizes: Sizes) -> tuple[dict[str, float], str]:
    """Write one file in `folder`, read blocks of it, and remove it.

    Returns:
        Fields of `Calibration`, and a note if O_DIRECT is refused.

    Raises:
        ResourceError: The disk is full or cannot be written.
    """
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".calibrate-") as file:
        with map_errors({OSError: ResourceError}, f"cannot write to {folder}"):
            for _ in range(max(1, sizes.file_bytes // MIB)):
                file.write(os.urandom(MIB))
            file.flush()
            os.fsync(file.fileno())
        with (
            DirectFile(Path(file.name)) as direct,
            contextlib.closing(Arena(max(sizes.reads))) as arena,
        ):
            return _measure(_Reader(direct, arena), sizes), direct.note or ""


def _measure(reader: "_Reader", sizes: Sizes) -> dict[str, float]:
    times, most = range(sizes.rounds), max(sizes.reads)
    line = fit_line(medians([[(s, reader.read_s(s)) for s in sizes.reads] for _ in times]))
    return {
        "disk_read_bps": 1 / line.slope if line.slope else most / line.fixed,
        "disk_request_s": line.fixed,
        "read_cpu_bps": median(reader.cpu_bps(most) for _ in times),
        "swap_bps": _SWAP_READ_BYTES
        / median(reader.read_s(_SWAP_READ_BYTES, _SWAP_READS) for _ in times),
    }


class _Reader:
    """Reads blocks at random places, the same ones in every run."""

    def __init__(self, file: DirectFile, arena: Arena) -> None:
        self._file, self._arena = file, arena
        self._random = random.Random("calibrate")  # not for secrets

    def read_s(self, size: int, most: int = _MOST_READS) -> float:
        """Mean seconds of a block over several places."""
        count = max(1, min(most, self._file.num_bytes // size))
        start_ns = time.monotonic_ns()
        for _ in range(count):
            self._read(size)
        return (time.monotonic_ns() - start_ns) / 1e9 / count

    def cpu_bps(self, size: int) -> float:
        """Bytes per second of processor time."""
        start_ns = time.thread_time_ns()
        self._read(size)
        return size / max(time.thread_time_ns() - start_ns, 1) * 1e9

    def _read(self, size: int) -> None:
        pages = max(0, self._file.num_bytes - size) // PAGE_BYTES
        offset = self._random.randint(0, pages) * PAGE_BYTES
        self._file.read_into(self._arena.view(0, size), offset)
