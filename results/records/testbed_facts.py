"""What a record keeps of its testbed: limits, links, the checks that they held, device facts.

Values are those in force on this host: dilated, where `Dilation` is not 1.
"""

from collections.abc import Mapping
from typing import Literal

import msgspec
from msgspec import Struct

from results.records.numbers import Amount, Count, Factor
from testbed.limits.limits import DeviceLimits
from testbed.links.link import LinkSpec
from testbed.verify.conditions import RunConditions
from testbed.verify.tolerances import Figure, ProbeReport


class Dilation(Struct, frozen=True, forbid_unknown_fields=True):
    """How many times slower everything ran, why, and what did not fit even so."""

    factor: Factor = 1.0
    reason: str = ""
    oversubscribed: str = ""


class DiskRates(Struct, frozen=True, forbid_unknown_fields=True):
    """Bytes per second; None is "not limited"."""

    read_bps: Amount | None = None
    write_bps: Amount | None = None


class LinksAsSet(Struct, frozen=True, forbid_unknown_fields=True):
    """What emulated the links, and each device's settings as the kernel gave them back."""

    backend: str = ""
    settings: tuple[Mapping[str, str], ...] = ()


class VerificationReport(Struct, frozen=True, forbid_unknown_fields=True):
    """What was measured of the limits and links of one repeat; `problems` is what did not hold."""

    before: ProbeReport | None = None
    after: ProbeReport | None = None
    conditions: RunConditions | None = None
    links: LinksAsSet | None = None
    problems: tuple[str, ...] = ()

    @property
    def figures(self) -> tuple[Figure, ...]:
        """Everything that was probed."""
        reports = (self.before, self.after)
        return tuple(f for report in reports if report is not None for f in report.figures)


class SimulatorFacts(Struct, frozen=True, forbid_unknown_fields=True):
    """The costs that a simulated run was computed from; `content` is for people alone."""

    name: str
    host: str = "unknown"
    digest: str = ""
    content: Mapping[str, object] = msgspec.field(default_factory=dict)


class RunCalibration(Struct, frozen=True, forbid_unknown_fields=True):
    """What is enforced on the devices that a system used, and what was measured of it."""

    disk_probe: DiskRates | None = None  # of this host's disk, before the run
    dilation: Dilation = Dilation()
    limits: tuple[DeviceLimits, ...] = ()
    links: tuple[LinkSpec, ...] = ()
    disk_read_bps: tuple[Amount, ...] = ()  # beside each repeat that streamed much from the disk
    proofs: tuple[VerificationReport, ...] = ()  # of each repeat
    simulator: SimulatorFacts | None = None


class LimitsInForce(Struct, frozen=True, forbid_unknown_fields=True):
    """What the kernel holds a device to, as read back; None is "not limited"."""

    cgroup_version: int | None = None
    memory_bytes: Count | None = None
    swap_bytes: Count | None = None
    cpus: Amount | None = None
    cpu_quota_us: int | None = None
    cpu_period_us: int | None = None
    disks: Mapping[str, DiskRates] = msgspec.field(default_factory=dict)


class DiskBytes(Struct, frozen=True, forbid_unknown_fields=True):
    """Bytes read from a disk and written to it."""

    read: Count
    written: Count


class DeviceCounters(Struct, frozen=True, forbid_unknown_fields=True):
    """What a device used and ran into since it was made."""

    cpu_s: Amount
    cpu_periods: Count
    cpu_periods_throttled: Count
    cpu_throttled_s: Amount
    oom_kills: Count
    memory_limit_hits: Count
    memory_was_full: bool
    file_bytes: Count
    swap_bytes: Count
    disk_bytes: Mapping[str, DiskBytes]


class DeviceFacts(Struct, frozen=True, forbid_unknown_fields=True):
    """What a device is and what limits hold on it; a plain process has few of them."""

    backend: str = ""
    threads: Count | None = None
    limits: LimitsInForce | Literal["none"] | None = None
    asked: DeviceLimits | None = None
    link: LinkSpec | None = None
    link_backend: str | None = None
    address: str | None = None
    container: str | None = None
    image: str | None = None
    image_id: str | None = None
    counters: DeviceCounters | None = None
