"""What this machine offers a run: memory, cores, disk space, rates of disk and memory.

Rates are measured once per folder of weights and kept there (`disk.json`, `memory.json`; remove
them to measure anew), so that the same command makes the same plan, and finds its run, again.
"""

import contextlib
import json
import mmap
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from testbed.host.environment import host_environment
from testbed.host.hostprobe import core_read_gbps
from tpi.errors import ConfigError, map_errors

# 64 MiB take 0.05 to 0.5 s each way: enough for an estimate, short enough to wait for.
_PROBE_BYTES = 64 << 20
_REQUEST_BYTES = 8 << 20
_RATES_FILE, _MEMORY_FILE = "disk.json", "memory.json"


@dataclass(frozen=True, slots=True)
class Host:
    """Facts that a plan is made from; bytes, and bytes per second."""

    available_memory: int
    free_disk: int
    read_bps: float
    write_bps: float
    cores: int
    core_gbps: float = 0.0  # 10^9 bytes/s that a core reads while all do; 0 where nobody asked


def probe_host(folder: Path, *, memory_rate: bool = False) -> Host:
    """Look at the machine; the first time, make `folder` and time a small file in it.

    Args:
        folder: Of the weights.
        memory_rate: Also measure how fast one core reads memory, for the limits of devices.

    Raises:
        ConfigError: The folder cannot be made or written to.
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


def _memory_rate(folder: Path) -> float:
    path = folder / _MEMORY_FILE
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["cpu"] == _cpu() and kept["core_gbps"] > 0:
            return float(kept["core_gbps"])
    kept = {"cpu": _cpu(), "core_gbps": round(core_read_gbps(), 2)}
    path.write_text(json.dumps(kept), encoding="utf-8")
    return float(kept["core_gbps"])


def _cpu() -> object:
    facts = host_environment()
    return [facts.cpu_model, facts.cores]


def _disk_rates(folder: Path, free_disk: int) -> tuple[float, float]:
    """(read, write) bytes per second, as kept or taken now."""
    path, device = folder / _RATES_FILE, folder.stat().st_dev
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["device"] == device and min(kept["read_bps"], kept["write_bps"]) > 0:
            return float(kept["read_bps"]), float(kept["write_bps"])
    if free_disk < 4 * _PROBE_BYTES:  # the plan refuses on the space, whatever the rate
        return 1e8, 1e8
    read_bps, write_bps = _probe_disk(folder)
    kept = {"device": device, "read_bps": round(read_bps), "write_bps": round(write_bps)}
    path.write_text(json.dumps(kept), encoding="utf-8")
    return kept["read_bps"], kept["write_bps"]


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
