"""Measures on the devices themselves whether their limits and links hold.

Each device runs one agent (`probe_agent.py`) meanwhile. All devices burn CPU at once, because
contention must show. Disks are read at once if the host's can serve all, else one after the other.
Then all workers ping the master, in turns, so that none waits for another on this host's cores.
Last, one worker after the other sends it a bulk of data, no more than the queues of its path hold.
`tolerances.py` says what is expected and how far off a figure may be.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import ceil
from pathlib import Path

from testbed.base import Device
from testbed.links.link import MSS_BYTES, LinkSpec
from testbed.verify.probe_agents import ANSWER_S, Agents, Answer, probe_agents
from testbed.verify.tolerances import (
    Expected,
    Figure,
    ProbeReport,
    expected_goodput_bps,
    expected_rtt_s,
    judge,
    judge_limit,
    measured_twice,
    path_loss,
    rtt_band_s,
)
from tpi.errors import ConfigError

# Sending commands and waking up takes the slowest device about this long.
_LEAD_S = 0.05
# A share begins anywhere in its period, so one period too many or too few is counted.
_BURN_S, _BURN_PERIODS, _MIN_QUOTA_S = 0.4, 40, 1e-3
# The kernel does not throttle the first slice of 0.1 s.
_DISK_WARM_S, _DISK_S, _DISK_REQUEST_S = 0.12, 0.5, 0.02
# A disk without a limit is only recorded.
_FREE_WARM_S, _FREE_DISK_S = 0.02, 0.15
_MIN_REQUEST, _MAX_REQUEST = 64 << 10, 4 << 20
_MOST_FILES = 16
# A disk that is nearly busy serves its users unevenly.
_DISK_SHARE = 0.9

_MASTER = 0
_PINGS, _LEAST_PINGS, _LONG_RTT_S = 12, 8, 0.02
# Between two pings of different workers; the rest of a round trip is spare.
_PING_SLOT_S, _PING_SPARE = 0.002, 1.25
# Connecting, two pings, and one in reserve come before the first measured ping.
_PING_LEAD_RTTS = 4
# Half of so many pings must come through without a loss, or their median means nothing.
_MOST_LOSS = 0.1
# A window that doubles every round trip fills the link after about two of its delay's worth.
_WARM_BDPS, _WARM_BYTES, _BULK_S, _MIN_SEGMENTS = 3, 64 << 10, 0.1, 4
_UNLIMITED_BYTES = 16 << 20
# In slow start at most half of what was sent is under way, so twice the queue cannot overflow it.
_QUEUE_SHARE, _MOST_WARM = 1.6, 0.75
# Covers connecting, slow start and a few losses.
_PATIENCE_RTTS = 30


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

    A figure that is out of tolerance is measured once more before it is believed. It takes about
    3 s for 8 devices undilated; the links' round trips come on top. `dilation` widens the RTT's
    band. Without `host_read_bps`, the rate of this host's disk, disks are read one by one. Where
    `oversubscribed` devices do not fit the host, shares of CPU and disk may be too small.
    """
    if len(devices) != len(expected):
        raise ConfigError(f"probe: {len(devices)} devices, {len(expected)} expectations")
    start_s = clock()
    figures = [f for i, device in enumerate(devices) for f in _limits(i, device, expected[i])]
    with probe_agents(devices) as agents:
        figures += measured_twice(lambda: _cpu(agents, expected, is_upper=oversubscribed))
        read = _disk_commands(devices, expected)
        groups = _disk_groups(list(read), expected, host_read_bps)
        figures += measured_twice(lambda: _disks(agents, expected, read, groups, oversubscribed))
        if len(devices) > 1:
            figures += _links(agents, devices[_MASTER].address, expected, dilation)
    return ProbeReport(tuple(figures), clock() - start_s)


def disk_files(folder: Path) -> tuple[Path, ...]:
    """The largest files below a folder, largest first; a disk's rate is measured by them."""
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


def _disk_commands(
    devices: Sequence[Device], expected: Sequence[Expected]
) -> dict[int, dict[str, object]]:
    """What each device that has files is to read."""
    commands: dict[int, dict[str, object]] = {}
    for index, (device, wanted) in enumerate(zip(devices, expected, strict=True)):
        cap = wanted.limits.read_bps
        size = _MAX_REQUEST if cap is None else int(cap * _DISK_REQUEST_S) & ~4095
        if wanted.files:
            commands[index] = {
                "do": "disk",
                "paths": [device.path_of(path) for path in wanted.files],
                "request_bytes": min(max(size, _MIN_REQUEST), _MAX_REQUEST),
                "warm_s": _FREE_WARM_S if cap is None else _DISK_WARM_S,
                "seconds": _FREE_DISK_S if cap is None else _DISK_S,
            }
    return commands


def _disk_groups(
    readers: list[int], expected: Sequence[Expected], host_read_bps: float | None
) -> list[list[int]]:
    """Which devices read at once: all if the host's disk can serve them, else each alone."""
    caps = [expected[i].limits.read_bps for i in readers]
    room = _DISK_SHARE * (host_read_bps or 0.0)
    at_once = None not in caps and sum(cap or 0 for cap in caps) < room
    return [readers] if at_once else [[i] for i in readers]


def _disks(
    agents: Agents,
    expected: Sequence[Expected],
    commands: Mapping[int, Mapping[str, object]],
    groups: Sequence[Sequence[int]],
    is_upper: bool,
) -> list[Figure]:
    answers: dict[int, Answer] = {}
    for group in groups:
        asked = {i: commands[i] for i in group}
        answers.update(zip(group, agents.ask(asked, ANSWER_S), strict=True))
    figures = []
    for i, wanted in enumerate(expected):
        cap, answer = wanted.limits.read_bps, answers.get(i)
        if answer is not None:
            why, rate = answer.error, answer.read_bps
            figures.append(judge(i, "read_bps", cap, rate, why=why, is_upper=is_upper))
        elif cap is not None:
            figures.append(judge(i, "read_bps", cap, None, why="there is no file to read"))
    return figures


def _links(
    agents: Agents, address: str, expected: Sequence[Expected], dilation: float
) -> list[Figure]:
    """All workers' links to the master, which listens at `address` meanwhile."""
    workers = range(1, len(agents))
    (served,) = agents.ask({_MASTER: {"do": "serve", "address": address}}, ANSWER_S)
    if served.event != "serve":
        why = f"the master does not listen: {served.error}"
        return [judge(i, "rtt_s", _rtt_s(expected, i), None, why=why) for i in workers]
    where = {"address": address, "port": served.port}
    figures = measured_twice(lambda: _pings(agents, where, expected, dilation))
    for worker in workers:
        figures += measured_twice(partial(_rate, agents, where, expected, worker))
    return figures


def bulk_sizes(link: LinkSpec, master: LinkSpec, rtt_s: float) -> tuple[int, int, bool]:
    """Bytes to send before and within the measured part, and whether they will fill the link.

    The measured part begins when the window has grown to fill the link, and takes a tenth of a
    second. Both are less where a queue might overflow, because that would be a loss.
    """
    rate_bps = expected_goodput_bps(link, master)
    most = int(_QUEUE_SHARE * min(link.queue_bytes, master.queue_bytes))
    if rate_bps is None:
        half = min(_UNLIMITED_BYTES, most) // 2
        return half, half, True
    bulk = max(_MIN_SEGMENTS * MSS_BYTES, int(_BULK_S * rate_bps / 8))
    warm = int(_WARM_BDPS * rate_bps * rtt_s / 8) + min(_WARM_BYTES, bulk)
    if warm > _MOST_WARM * most:
        half = max(_MIN_SEGMENTS * MSS_BYTES, most // 2)
        return half, half, False
    return warm, min(bulk, most - warm), True


def _pings(
    agents: Agents, where: Mapping[str, object], expected: Sequence[Expected], dilation: float
) -> list[Figure]:
    workers = range(1, len(agents))
    rtts_s = [_rtt_s(expected, i) for i in workers]
    longest_s = max(rtts_s)
    every_s = max(_PING_SLOT_S * len(workers), _PING_SPARE * longest_s)
    count = _PINGS if longest_s < _LONG_RTT_S else _LEAST_PINGS
    start_s = time.monotonic() + _LEAD_S + _PING_LEAD_RTTS * longest_s
    timeout_s = ANSWER_S + _PATIENCE_RTTS * longest_s
    ping = {"do": "ping", **where, "every_s": every_s, "count": count, "timeout_s": timeout_s}
    commands = {
        i: {**ping, "at_ns": int((start_s + every_s * (i - 1) / len(workers)) * 1e9)}
        for i in workers
    }
    answers = agents.ask(commands, timeout_s + count * every_s)
    figures = []
    for i, rtt_s, answer in zip(workers, rtts_s, answers, strict=True):
        loss = path_loss(expected[i].link, expected[_MASTER].link)
        wanted = rtt_s if loss < _MOST_LOSS else None
        measured = None if answer.rtts_s is None else statistics.median(answer.rtts_s)
        band = rtt_band_s(rtt_s, dilation)
        figures.append(judge(i, "rtt_s", wanted, measured, band=band, why=answer.error))
    return figures


def _rate(
    agents: Agents, where: Mapping[str, object], expected: Sequence[Expected], worker: int
) -> list[Figure]:
    link, master = expected[worker].link, expected[_MASTER].link
    wanted, rtt_s = expected_goodput_bps(link, master), _rtt_s(expected, worker)
    warm, measured, is_filled = bulk_sizes(link, master, rtt_s)
    wire_s = 0.0 if wanted is None else 8 * (warm + measured) / wanted
    timeout_s = ANSWER_S + _PATIENCE_RTTS * rtt_s + 2 * wire_s
    sizes = {"warm_bytes": warm, "bytes": measured}
    command = {"do": "send", **where, **sizes, "timeout_s": timeout_s}
    # The agent's own deadline, a socket's, begins anew with every piece.
    (answer,) = agents.ask({worker: command}, 2 * timeout_s)
    # TCP does not fill a link that loses packets, by chance or for want of room.
    is_upper = path_loss(link, master) > 0 or not is_filled
    return [judge(worker, "rate_bps", wanted, answer.rate_bps, why=answer.error, is_upper=is_upper)]


def _rtt_s(expected: Sequence[Expected], worker: int) -> float:
    return expected_rtt_s(expected[worker].link, expected[_MASTER].link)
