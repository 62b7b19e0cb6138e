"""Measures on the devices themselves whether their limits and links hold.

Each device runs one agent (`probe_agent.py`) for the while. All devices burn CPU at once, since
contention is what must show; disks are read at once if the host's can serve all, else one after the
other; the links come last (`probe_links.py`). What is expected, and how far off a figure may be, is
`testbed/verify/tolerances.py`'s. Read `probe_devices` first.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from math import ceil
from pathlib import Path

from testbed.base import Device
from testbed.verify.probe_agents import ANSWER_S, Agents, Answer, probe_agents
from testbed.verify.probe_links import probe_links
from testbed.verify.tolerances import (
    Expected,
    Figure,
    ProbeReport,
    judge,
    judge_limit,
    measured_twice,
)
from tpi.errors import ConfigError

# Sending commands and waking up takes the slowest device about this long.
_LEAD_S = 0.05
# A share begins anywhere in its period, so that one period too many or too few is counted.
_BURN_S, _BURN_PERIODS, _MIN_QUOTA_S = 0.4, 40, 1e-3
# The kernel's throttling lets the first slice of 0.1 s through as it comes.
_DISK_WARM_S, _DISK_S, _DISK_REQUEST_S = 0.12, 0.5, 0.02
# Without a limit it is only recorded.
_FREE_WARM_S, _FREE_DISK_S = 0.02, 0.15
_MIN_REQUEST, _MAX_REQUEST = 64 << 10, 4 << 20
_MOST_FILES = 16
# The disk itself serves its users unevenly when it is nearly busy.
_DISK_SHARE = 0.9


def probe_devices(
    devices: Sequence[Device],
    expected: Sequence[Expected],
    *,
    dilation: float = 1.0,
    host_read_bps: float | None = None,
    oversubscribed: bool = False,
    clock: Callable[[], float] = time.monotonic,
) -> ProbeReport:
    """Measure on all devices; they must be idle, rank 0 first.

    What is out of its band is measured once more before it is believed.

    Args:
        devices: What is measured.
        expected: What holds on each.
        dilation: How much slower than the emulated clock this host's is; widens the RTT's band.
        host_read_bps: What this host's disk gives; unless given, disks are read one by one.
        oversubscribed: Whether devices are known not to fit the host: then shares of CPU and disk
            are wrong only if they are too large.
        clock: For tests.

    Cost: about 3 s for 8 devices undilated, links' round trips come on top.

    Raises:
        DeviceError: An agent could not be started.
    """
    if len(devices) != len(expected):
        raise ConfigError(f"probe: {len(devices)} devices, {len(expected)} expectations")
    start_s = clock()
    figures = [f for i, device in enumerate(devices) for f in _limits(i, device, expected[i])]
    with probe_agents(devices) as agents:
        figures += measured_twice(lambda: _cpu(agents, expected, is_upper=oversubscribed))
        disks = _Disks(devices, expected, host_read_bps, is_upper=oversubscribed)
        figures += measured_twice(lambda: disks.measure(agents))
        if len(devices) > 1:
            figures += probe_links(agents, devices[0].address, expected, dilation)
    return ProbeReport(tuple(figures), clock() - start_s)


def disk_files(folder: Path) -> tuple[Path, ...]:
    """The largest files below a folder, largest first: what a disk's rate is measured by."""
    sizes = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    found = sorted((path for path in sizes if sizes[path]), key=lambda path: (-sizes[path], path))
    return tuple(found[:_MOST_FILES])


def _limits(index: int, device: Device, expected: Expected) -> list[Figure]:
    """Memory and swap, as the kernel says."""
    limits = expected.limits
    found = device.facts().get("limits")
    in_force = found if isinstance(found, Mapping) else {}
    figures = [judge_limit(index, "memory", limits.memory, in_force.get("memory_bytes"))]
    if limits.swap:
        figures.append(judge_limit(index, "swap", limits.swap, in_force.get("swap_bytes")))
    return figures


def _cpu(agents: Agents, expected: Sequence[Expected], *, is_upper: bool) -> list[Figure]:
    """All that have a share burn at once; the others rest."""
    shares = {i: e.limits.cpus for i, e in enumerate(expected) if e.limits.cpus is not None}
    if not shares:
        return []
    seconds = max(_BURN_S, _BURN_PERIODS * _MIN_QUOTA_S / min(shares.values()))
    at_ns = time.monotonic_ns() + int(_LEAD_S * 1e9)
    commands = {
        i: {"do": "burn", "at_ns": at_ns, "seconds": seconds, "processes": ceil(share)}
        for i, share in shares.items()
    }
    answers = agents.ask(commands, seconds + ANSWER_S)
    return [
        judge(i, "cpus", share, answer.cpus, why=answer.error, is_upper=is_upper)
        for (i, share), answer in zip(shares.items(), answers, strict=True)
    ]


class _Disks:
    """The disk rates of all devices that have a file to read."""

    def __init__(
        self,
        devices: Sequence[Device],
        expected: Sequence[Expected],
        host_read_bps: float | None,
        *,
        is_upper: bool,
    ) -> None:
        self._caps = [e.limits.read_bps for e in expected]
        self._is_upper = is_upper
        self._commands = {
            i: _disk_command(device, e)
            for i, (device, e) in enumerate(zip(devices, expected, strict=True))
            if e.files
        }
        caps = [self._caps[i] for i in self._commands]
        room = _DISK_SHARE * (host_read_bps or 0.0)
        self._at_once = None not in caps and sum(cap or 0 for cap in caps) < room

    def measure(self, agents: Agents) -> list[Figure]:
        """At once, or one after the other."""
        answers: dict[int, Answer] = {}
        for group in [list(self._commands)] if self._at_once else [[i] for i in self._commands]:
            asked = {i: self._commands[i] for i in group}
            answers.update(zip(group, agents.ask(asked, ANSWER_S), strict=True))
        return [
            self._judge(i, cap, answers.get(i))
            for i, cap in enumerate(self._caps)
            if i in answers or cap is not None
        ]

    def _judge(self, index: int, cap: int | None, answer: Answer | None) -> Figure:
        if answer is None:
            return judge(index, "read_bps", cap, None, why="there is no file to read")
        return judge(
            index, "read_bps", cap, answer.read_bps, why=answer.error, is_upper=self._is_upper
        )


def _disk_command(device: Device, expected: Expected) -> dict[str, object]:
    cap = expected.limits.read_bps
    size = _MAX_REQUEST if cap is None else int(cap * _DISK_REQUEST_S) & ~4095
    return {
        "do": "disk",
        "paths": [device.path_of(path) for path in expected.files],
        "request_bytes": min(max(size, _MIN_REQUEST), _MAX_REQUEST),
        "warm_s": _FREE_WARM_S if cap is None else _DISK_WARM_S,
        "seconds": _FREE_DISK_S if cap is None else _DISK_S,
    }
