"""What else happened to host, devices and links while a repeat ran. Pure.

Throttling, foreign load, swapping, segments sent again and late packets: the difference of two
snapshots (`host_counters.py`), at the repeat's beginning and its end. Where something went wrong,
it is a problem, and the repeat does not count.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from testbed.links.tcp_counters import unexplained_retransmissions
from testbed.verify.host_counters import CounterSnapshot, DeviceCounters

_LEAST_S = 1e-3


@dataclass(frozen=True, slots=True)
class DeviceConditions:
    """What one device went through.

    Attributes:
        cpu_s: CPU time it used.
        throttled_share: Share of its periods in which it used up its quota.
        throttled_s: Time it waited for the next period, summed over its cores.
        retransmissions: Segments its TCP sent again; None if that is not known.
    """

    cpu_s: float
    throttled_share: float
    throttled_s: float
    retransmissions: int | None = None


@dataclass(frozen=True, slots=True)
class RunConditions:
    """The conditions of one repeat; cores are averages.

    Attributes:
        wall_s: How long it took, preparation of the programs included.
        foreign_cores: Busy with neither devices nor harness; the Docker daemon's work for us
            counts among them.
        steal_cores: Taken by another machine on the same hardware.
        own_cores: Used by harness and switch.
        swapped_in: Bytes that the host read from swap; it wrote `swapped_out`.
        unexplained_retransmissions: Segments sent again though no link dropped one.
        late_us: How late packets left the switch, since it was started.
        problems: Why the repeat does not count, a line each.
    """

    wall_s: float
    foreign_cores: float
    steal_cores: float
    own_cores: float
    swapped_in: int
    swapped_out: int
    devices: tuple[DeviceConditions, ...]
    unexplained_retransmissions: int | None = None
    late_us: Mapping[str, float] | None = None
    problems: tuple[str, ...] = ()


def conditions_between(
    begin: CounterSnapshot,
    end: CounterSnapshot,
    *,
    dilation: float = 1.0,
    may_resend: bool = False,
    may_swap: bool = False,
) -> RunConditions:
    """What happened between two snapshots on a host that is `dilation` times slower than emulated.

    `may_resend` says that links lose packets or have faults, so that TCP rightly sends again;
    `may_swap` that devices have swap, whose rate is not dilated.
    """
    wall_s = max(end.t_s - begin.t_s, _LEAST_S)
    tcp = _tcp(begin.network, end.network)
    devices = tuple(
        _device(before, after, tcp[i] if i < len(tcp) else None)
        for i, (before, after) in enumerate(zip(begin.devices, end.devices, strict=True))
    )
    own_s = end.own_s - begin.own_s
    ours_s = own_s + sum(device.cpu_s for device in devices)
    found = RunConditions(
        wall_s=wall_s,
        foreign_cores=max(0.0, end.busy_s - begin.busy_s - ours_s) / wall_s,
        steal_cores=(end.steal_s - begin.steal_s) / wall_s,
        own_cores=own_s / wall_s,
        swapped_in=end.swapped_in - begin.swapped_in,
        swapped_out=end.swapped_out - begin.swapped_out,
        devices=devices,
        unexplained_retransmissions=_unexplained(begin.network, end.network, tcp),
        late_us=end.network.get("late_us"),
    )
    return replace(found, problems=_problems(found, dilation, may_resend, may_swap))


def _problems(
    found: RunConditions, dilation: float, may_resend: bool, may_swap: bool
) -> tuple[str, ...]:
    problems = []
    count = found.unexplained_retransmissions
    if count and not may_resend:
        problems.append(
            f"links: TCP sent {count} segments again although no link dropped one: this host was"
            " too slow for the emulation"
        )
    swapped = found.swapped_in + found.swapped_out
    if swapped and dilation > 1 and may_swap:
        problems.append(
            f"swap_undilated: {swapped} bytes went to and from swap, whose rate is not slowed by"
            f" the dilation of {dilation:g}"
        )
    return tuple(problems)


def _device(
    before: DeviceCounters, after: DeviceCounters, tcp: Mapping[str, int] | None
) -> DeviceConditions:
    periods = max(1, after.periods - before.periods)
    return DeviceConditions(
        cpu_s=after.cpu_s - before.cpu_s,
        throttled_share=(after.throttled_periods - before.throttled_periods) / periods,
        throttled_s=after.throttled_s - before.throttled_s,
        retransmissions=None if tcp is None else tcp.get("RetransSegs"),
    )


def _tcp(begin: Mapping[str, Any], end: Mapping[str, Any]) -> list[dict[str, int] | None]:
    """Differences of TCP's counters by device; None of one that is not known."""
    pairs = zip(begin.get("tcp") or (), end.get("tcp") or (), strict=True)
    return [_minus(old, new) if old and new else None for old, new in pairs]


def _unexplained(
    begin: Mapping[str, Any], end: Mapping[str, Any], tcp: Sequence[Mapping[str, int] | None]
) -> int | None:
    if "ports" not in end or not tcp:
        return None
    pairs = zip(begin["ports"], end["ports"], strict=True)
    return unexplained_retransmissions([_minus(old, new) for old, new in pairs], tcp)


def _minus(old: Mapping[str, int], new: Mapping[str, int]) -> dict[str, int]:
    return {key: value - old.get(key, 0) for key, value in new.items()}
