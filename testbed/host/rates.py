"""What this machine offers a run: memory, cores, disk space, rates of disk and memory.

Rates are measured once per folder of weights and kept there (`disk.json`, `memory.json`; remove
them to measure anew), so that the same command makes the same plan, and finds its run, again.
"""

import mmap
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
import psutil
from msgspec import Meta, Struct

from testbed.host.environment import host_environment
from tpi.decode import decode_file
from tpi.errors import ConfigError, map_errors

# 64 MiB take 0.05 to 0.5 s each way: enough for an estimate, short enough to wait for.
_PROBE_BYTES = 64 << 20
_REQUEST_BYTES = 8 << 20
_RATES_FILE, _MEMORY_FILE = "disk.json", "memory.json"
_PRODUCT_BYTES = 256 << 20  # far beyond any cache
_PASSES = 9
_MAX_BYTES = 4096
_Rate = Annotated[float, Meta(gt=0)]


@dataclass(frozen=True, slots=True)
class Host:
    """Facts that a plan is made from; bytes, and bytes per second."""

    available_memory: int
    free_disk: int
    read_bps: float
    write_bps: float
    cores: int
    core_gbps: float = 0.0  # 10^9 bytes/s that a core reads while all do; 0 if not asked


def probe_host(folder: Path, *, memory_rate: bool = False) -> Host:
    """Look at the machine; the first time, make `folder` (of weights) and time a file in it.

    With `memory_rate` a core's memory rate is measured too, for the limits of devices. A folder
    that cannot be made or written to is a ConfigError.
    """
    with map_errors({OSError: ConfigError}, f"weights.dir {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        stat = os.statvfs(folder)
        read_bps, write_bps = _disk_rates(folder, stat.f_bavail * stat.f_frsize)
        core_gbps = _memory_rate(folder) if memory_rate else 0.0
    return Host(
        available_memory=psutil.virtual_memory().available,
        free_disk=stat.f_bavail * stat.f_frsize,
        read_bps=read_bps,
        write_bps=write_bps,
        cores=len(os.sched_getaffinity(0)),
        core_gbps=core_gbps,
    )


def core_read_gbps() -> float:
    """10^9 bytes per second and core in a float32 matrix-vector product on all cores.

    Devices together keep all cores busy, so that is the rate each of them finds. The best pass
    counts, because other programs can only take from what the host can give.
    """
    import numpy as np

    columns = 4096
    matrix = np.ones((_PRODUCT_BYTES // 4 // columns, columns), dtype=np.float32)
    vector = np.ones(columns, dtype=np.float32)
    out = np.empty(matrix.shape[0], dtype=np.float32)
    seconds = []
    for _ in range(_PASSES):
        start_ns, cpu_ns = time.monotonic_ns(), time.process_time_ns()
        np.dot(matrix, vector, out=out)
        wall_ns, cpu_ns = time.monotonic_ns() - start_ns, time.process_time_ns() - cpu_ns
        # CPU time of all threads: numpy spreads the product over the cores.
        seconds.append(max(wall_ns, cpu_ns) / 1e9)
    return _PRODUCT_BYTES / min(seconds) / 1e9


class _DiskRates(Struct, frozen=True, forbid_unknown_fields=True):
    device: int
    read_bps: _Rate
    write_bps: _Rate


class _MemoryRate(Struct, frozen=True, forbid_unknown_fields=True):
    cpu: tuple[str | None, int | None]
    core_gbps: _Rate


_Kept = TypeVar("_Kept", _DiskRates, _MemoryRate)


def _kept(path: Path, as_type: type[_Kept]) -> _Kept | None:
    """The rates in a file; None if they are not there or of no use."""
    try:
        return decode_file(path, as_type, _MAX_BYTES, ConfigError)
    except ConfigError:
        return None


def _memory_rate(folder: Path) -> float:
    path, facts = folder / _MEMORY_FILE, host_environment()
    cpu = (facts.cpu_model, facts.cores)
    kept = _kept(path, _MemoryRate)
    if kept is None or kept.cpu != cpu:
        kept = _MemoryRate(cpu, round(core_read_gbps(), 2))
        path.write_bytes(msgspec.json.encode(kept))
    return kept.core_gbps


def _disk_rates(folder: Path, free_disk: int) -> tuple[float, float]:
    """(read, write) bytes per second, as kept or taken now."""
    path, device = folder / _RATES_FILE, folder.stat().st_dev
    kept = _kept(path, _DiskRates)
    if kept is None or kept.device != device:
        if free_disk < 4 * _PROBE_BYTES:  # the plan refuses on the space, whatever the rate
            return 1e8, 1e8
        kept = _DiskRates(device, *map(round, _probe_disk(folder)))
        path.write_bytes(msgspec.json.encode(kept))
    return float(kept.read_bps), float(kept.write_bps)


def _probe_disk(folder: Path) -> tuple[float, float]:
    """(read, write) bytes per second, past the page cache where the file system allows it."""
    buffer = mmap.mmap(-1, _REQUEST_BYTES)  # page-aligned, as O_DIRECT wants
    buffer[:] = os.urandom(1 << 20) * (_REQUEST_BYTES >> 20)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".probe-") as file:
        path = Path(file.name)
        write_bps = _timed(path, os.O_WRONLY, lambda fd: os.write(fd, buffer))
        read_bps = _timed(path, os.O_RDONLY, lambda fd: os.readv(fd, [buffer]))
    return read_bps, write_bps


def _timed(path: Path, flags: int, transfer: Callable[[int], int]) -> float:
    try:
        fd = os.open(path, flags | os.O_DIRECT)
    except OSError:  # tmpfs and some network file systems have no O_DIRECT
        fd = os.open(path, flags)
    try:
        start_ns = time.monotonic_ns()
        for _ in range(_PROBE_BYTES // _REQUEST_BYTES):
            transfer(fd)
        if flags == os.O_WRONLY:
            os.fsync(fd)
        return _PROBE_BYTES / max(time.monotonic_ns() - start_ns, 1) * 1e9
    finally:
        os.close(fd)
