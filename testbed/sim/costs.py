"""Costs of computing and reading for each rank of a run, as whole nanoseconds by rank.

A rank's processor is worth so many cores of the calibrated host; its disk is its own, or the
calibrated host's where it has no limit.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from testbed.sim.base import SimRun
from testbed.sim.calibration import Calibration
from testbed.sim.network import Ints, as_ns

_PAGE_BYTES = 4096


class Costs:
    """Seconds of one core made into nanoseconds of each rank."""

    def __init__(self, run: SimRun, calibration: Calibration) -> None:
        self._run = run
        self._calibration = calibration
        self.cores = np.array([device.cores for device in run.devices])
        limit = calibration.disk_read_bps
        self.disk_bps = np.array([device.disk_read_bps or limit for device in run.devices])
        self._second_per_paged = np.zeros(run.world_size)

    def swap(self, anon: Sequence[int], weights: Sequence[int]) -> None:
        """Charge ranks whose anonymous memory (peaks in `anon`) does not fit.

        A pass pages all of it in again; each block is charged its part of all `weights` bytes.
        """
        rate_bps = np.minimum(self._calibration.swap_bps, self.disk_bps)
        swaps = [
            device.memory is not None and need > device.memory
            for device, need in zip(self._run.devices, anon, strict=True)
        ]
        each_s = np.array(anon) / rate_bps / np.maximum(np.array(weights), 1)
        self._second_per_paged = np.where(swaps, each_s, 0.0)

    def paging(self, num_bytes: Sequence[int] | NDArray[np.float64]) -> Ints:
        """Time that blocks of so many bytes take each rank that swaps, before it computes them."""
        return as_ns(self._second_per_paged * np.array(num_bytes))

    def on_cores(self, seconds: float | NDArray[np.float64]) -> Ints:
        """Time that so many seconds of one core take each rank."""
        return as_ns(seconds / self.cores)

    def read(self, num_bytes: NDArray[np.int64]) -> Ints:
        """Time that reading a block of so many bytes takes each rank's loader."""
        calibration = self._calibration
        by_disk = num_bytes / self.disk_bps
        by_cpu = num_bytes / calibration.read_cpu_bps / self.cores
        return as_ns(np.maximum(by_disk, by_cpu) + calibration.disk_request_s)

    def read_work(self, num_bytes: Ints) -> Ints:
        """Time that reading so many bytes takes each rank's processor."""
        return self.on_cores(num_bytes / self._calibration.read_cpu_bps)

    def products(self, num_bytes: Sequence[float], rows: int) -> NDArray[np.float64]:
        """Seconds of one core that each rank's stored weights of so many bytes take."""
        run = self._run
        one = self._calibration.product_s(1.0, rows, run.storage, run.compute.dtype)
        return one * np.array(num_bytes, dtype=np.float64)

    def attend(self, rows: int, start: int, heads: Sequence[int]) -> NDArray[np.float64]:
        """Seconds of one core of a layer's attention: rows behind `start` cached ones."""
        # A first chunk leaves out what is masked; a later one has a mask over all keys, which the
        # kernel works through whole.
        keys = start + rows if start else (rows + 1) / 2
        head_size, dtype = self._run.model.head_size, self._run.compute.dtype
        one = self._calibration.attend_s(rows, keys, head_size, dtype)
        return one * np.array(heads, dtype=np.float64)

    def block(self, rows: int) -> float:
        """Seconds of one core of a block beside its products."""
        more = (rows - 1) * self._run.model.hidden_size
        return self._calibration.block_s + self._calibration.element_s * more

    def embed(self, rows: int) -> tuple[int, int]:
        """Bytes that the master reads of the embedding, and nanoseconds that it takes."""
        run = self._run
        row_bytes = run.model.hidden_size * (4 if run.storage == "float32" else 2)
        span = -(-row_bytes // _PAGE_BYTES) * _PAGE_BYTES
        each_s = span / float(self.disk_bps[0]) + self._calibration.disk_request_s
        return rows * span, round(rows * each_s * 1e9)
