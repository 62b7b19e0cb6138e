"""How much slower devices must run so that they fit this host, and what is enforced then. Pure.

Time dilation keeps proportions: at dilation k each device gets 1/k of its CPU and disk rate, links
get k times the delay and 1/k of the rate, and every measured time is divided by k. The CPU of a
device is counted in cores of this host. Decode reads all weights for every token, so there it is
the device's memory rate over that of one core here; for prefill it is the device's cores.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from harness.config.profiles import DeviceProfile
from testbed.host.rates import Host
from testbed.limits.limits import DeviceLimits
from tpi.errors import ConfigError

# Of the host's cores and disk; the rest is for the switch, the harness and the kernel.
USABLE = 0.85
_LARGEST = 1000


@dataclass(frozen=True, slots=True)
class Dilation:
    """The factor, and why.

    Attributes:
        factor: How many times slower everything runs.
        reason: Why devices do not fit as they are; empty if they do.
        oversubscribed: What does not fit but runs nevertheless; empty if all fits.
    """

    factor: float
    reason: str = ""
    oversubscribed: str = ""


def host_cores(profile: DeviceProfile, host: Host, fit: str) -> float | None:
    """How many cores of this host a device is worth, undilated; None if it is not limited."""
    if profile.cores is None and profile.mem_gbps is None:
        return None
    by_cores = profile.core_speed * (profile.cores or float("inf"))
    if fit == "prefill" or profile.mem_gbps is None:
        return by_cores if profile.cores is not None else None
    return min(by_cores, profile.mem_gbps / host.core_gbps)


def choose_dilation(
    asked: float | str,
    profiles: Sequence[DeviceProfile],
    host: Host,
    *,
    fit: str = "decode",
    oversubscribe: bool = False,
) -> Dilation:
    """The dilation of a run: as asked, or the least whole number at which all devices fit.

    Raises:
        ConfigError: They do not fit at the one that was asked for, or at any.
    """
    needs = _needs(profiles, host, fit)
    least = max((ceil(round(need, 6)) for need, _ in needs), default=1)
    least = max(1, least)
    reason = max(needs, default=(0.0, ""))[1] if least > 1 else ""
    if asked == "auto":
        if least > _LARGEST:
            raise ConfigError(f"testbed.dilation: {reason}; no dilation up to {_LARGEST} fits")
        return Dilation(float(least), reason)
    factor = float(asked)
    too_much = [text for need, text in needs if need > factor * 1.000001]
    if too_much and not oversubscribe:
        raise ConfigError(
            f"testbed.dilation: got {factor:g}, but {too_much[0]}; say testbed.dilation={least}"
            " (or auto), fewer devices, or testbed.oversubscribe=true, which the results will say"
        )
    return Dilation(factor, reason, too_much[0] if too_much else "")


def limits_of(
    profile: DeviceProfile, factor: float, host: Host, fit: str = "decode"
) -> DeviceLimits:
    """What is enforced on this host for a device at a dilation."""
    cores = host_cores(profile, host, fit)
    cpus = None if cores is None else cores / factor
    return DeviceLimits(
        cpus=None if cpus is None or cpus >= host.cores else cpus,
        threads=profile.threads or (1 if cpus is None else _threads(cpus, profile, host)),
        memory=profile.memory,
        swap=profile.swap,
        read_bps=_rate(profile.disk_read_mb_s, factor),
        write_bps=_rate(profile.disk_write_mb_s, factor),
    )


def _threads(cpus: float, profile: DeviceProfile, host: Host) -> int:
    """As many threads as its quota keeps busy: more would only take turns."""
    return max(1, min(ceil(round(cpus, 6)), host.cores, ceil(profile.cores or host.cores)))


def _rate(mb_s: float | None, factor: float) -> int | None:
    return None if mb_s is None else max(1, round(mb_s * 1e6 / factor))


def _needs(profiles: Sequence[DeviceProfile], host: Host, fit: str) -> list[tuple[float, str]]:
    """(dilation that it takes, why) for CPU and for the disk."""
    cores = sum(host_cores(profile, host, fit) or 0.0 for profile in profiles)
    read = sum((profile.disk_read_mb_s or 0.0) * 1e6 for profile in profiles)
    return [
        (
            cores / (USABLE * host.cores),
            f"{len(profiles)} devices are worth {cores:.3g} cores of this host, which has"
            f" {USABLE * host.cores:.3g} of {host.cores} to give",
        ),
        (
            read / (USABLE * host.read_bps),
            f"{len(profiles)} devices read {read / 1e9:.3g} GB/s from disk, this host's gives"
            f" {USABLE * host.read_bps / 1e9:.3g} of {host.read_bps / 1e9:.3g} GB/s",
        ),
    ]
