"""Counters of the host, the devices and the links at one moment.

`take_snapshot` reads them; `conditions.py` says what the difference of two snapshots means.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from testbed.base import DeviceError
from testbed.host.procfs import PROC, process_tree, read_stat
from testbed.limits.cgroup import Cgroup

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
# Fields of the first line of /proc/stat. Interrupts are left out: those of our packets and reads
# cannot be told from others'.
_USER, _NICE, _SYSTEM, _STEAL = 0, 1, 2, 7
# Fields of /proc/PID/stat, counted from the state: own and reaped children's time.
_TIMES = slice(11, 15)


@dataclass(frozen=True, slots=True)
class DeviceCounters:
    """Counters of one device's control group."""

    cpu_s: float
    periods: int
    throttled_periods: int
    throttled_s: float


@dataclass(frozen=True, slots=True)
class CounterSnapshot:
    """Counters at one moment.

    Attributes:
        t_s: On the monotonic clock.
        busy_s: CPU time that all tasks of the host used.
        steal_s: CPU time that another machine on the same hardware took.
        own_s: CPU time of this process and its descendants, the switch among them.
        swapped_in: Bytes that the host read from swap; it wrote `swapped_out`.
        network: What the links counted.
    """

    t_s: float
    busy_s: float
    steal_s: float
    own_s: float
    swapped_in: int
    swapped_out: int
    devices: tuple[DeviceCounters, ...] = ()
    network: Mapping[str, Any] = field(default_factory=dict)


def take_snapshot(
    cgroups: Sequence[Cgroup],
    network_counters: Callable[[], Mapping[str, Any]],
    *,
    proc: Path = PROC,
    clock: Callable[[], float] = time.monotonic,
) -> CounterSnapshot:
    """Read all counters; `proc` and `clock` are for tests."""
    busy_s, steal_s = _cpu_times(proc)
    swapped_in, swapped_out = _swapped(proc)
    return CounterSnapshot(
        t_s=clock(),
        busy_s=busy_s,
        steal_s=steal_s,
        own_s=own_cpu_s(os.getpid(), proc),
        swapped_in=swapped_in,
        swapped_out=swapped_out,
        devices=tuple(_device_counters(cgroup) for cgroup in cgroups),
        network=network_counters(),
    )


def own_cpu_s(pid: int, proc: Path = PROC) -> float:
    """CPU time of a process and its descendants, ended ones included."""
    stats = (read_stat(each, proc) for each in process_tree(pid, proc))
    return _TICK_S * sum(int(tick) for stat in stats if stat for tick in stat[_TIMES])


def _device_counters(cgroup: Cgroup) -> DeviceCounters:
    periods, throttled, throttled_ns = cgroup.throttling
    return DeviceCounters(cgroup.cpu_usage_ns / 1e9, periods, throttled, throttled_ns / 1e9)


def _cpu_times(proc: Path) -> tuple[float, float]:
    line = _text(proc / "stat").partition("\n")[0].split()[1:]
    ticks = [int(word) for word in line]
    busy = ticks[_USER] + ticks[_NICE] + ticks[_SYSTEM]
    return busy * _TICK_S, (ticks[_STEAL] if len(ticks) > _STEAL else 0) * _TICK_S


def _swapped(proc: Path) -> tuple[int, int]:
    rows = dict(line.split() for line in _text(proc / "vmstat").splitlines())
    pages_in, pages_out = (int(rows.get(name, 0)) for name in ("pswpin", "pswpout"))
    return pages_in * _PAGE_BYTES, pages_out * _PAGE_BYTES


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except OSError as exc:
        raise DeviceError(f"conditions: cannot read {path}: {exc.strerror}") from exc
