"""What devices, links and testbeds a user may ask for: one dataclass per axis, values checked.

A testbed names a backend and, where its devices differ, one profile per rank (`roster`) and one
link per rank (`links`, each only what differs from the `link` axis). Values are those of the real
thing: `dilation.py` makes of them what is enforced on this host.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from baselines.validators import (
    check_choice,
    check_count,
    check_flag,
    check_number,
    check_size,
    check_text,
    make_options,
    nearest,
)
from testbed.links.link import LinkSpec
from tpi.errors import ConfigError

BACKENDS = ("local", "docker", "sim")
REFERENCE_CALIBRATION = "reference"  # the one that comes with the project
LINK_BACKENDS = ("auto", "netem", "switch", "switch-c", "switch-python")
FAULTS = ("cut", "delay", "drop", "duplicate")
FITS = ("decode", "prefill")
_MOST = 1e9
# Not slower than one byte in ten seconds, nor longer than a minute: no link anybody has.
_MOST_DELAY_MS = 60_000
_LEAST_MEMORY = 6 << 20  # Docker takes no less


@dataclass
class DeviceProfile:
    """What a device is like; null is "not limited".

    Attributes:
        cores: Cores that it has.
        core_speed: Speed of one of them, where a core of this host is 1.
        mem_gbps: Rate at which all its cores together read memory, in 10^9 bytes per second.
        memory: Bytes.
        swap: Bytes beside `memory`.
        disk_read_mb_s: 10^6 bytes per second; likewise `disk_write_mb_s`.
        threads: Compute threads; null takes as many as the device's share of this host has cores.
    """

    name: str = "local"
    cores: float | None = None
    core_speed: float = 1.0
    mem_gbps: float | None = None
    memory: int | None = None
    swap: int = 0
    disk_read_mb_s: float | None = None
    disk_write_mb_s: float | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        check_text("device.name", self.name)
        self.core_speed = check_number("device.core_speed", self.core_speed, low=0.001, high=1000)
        for name in ("cores", "mem_gbps", "disk_read_mb_s", "disk_write_mb_s"):
            if (value := getattr(self, name)) is not None:
                setattr(self, name, check_number(f"device.{name}", value, low=0.01, high=1e6))
        if self.memory is not None:
            self.memory = check_size("device.memory", self.memory, low=_LEAST_MEMORY)
        if self.swap != 0:
            self.swap = check_size("device.swap", self.swap)
        if self.swap and self.memory is None:
            raise ConfigError("device.swap: needs device.memory, beside which it is counted")
        if self.threads is not None:
            check_count("threads", self.threads, high=1024)

    @property
    def limited(self) -> tuple[str, ...]:
        """Names of the fields that limit something."""
        names = ("cores", "mem_gbps", "memory", "swap", "disk_read_mb_s", "disk_write_mb_s")
        return tuple(name for name in names if getattr(self, name))


@dataclass
class LinkFault:
    """Something that happens to one device's link while the measured request runs.

    Attributes:
        device: Its rank.
        kind: `cut` (1 cuts, 0 restores), `delay` (ms more, one way), `drop` or `duplicate` (share
            of packets, 0 to 1).
        at_s: Seconds after the measured request began, on the emulated clock.
        for_s: Until it is undone; null leaves it.
    """

    device: int
    kind: str
    value: float = 1.0
    at_s: float = 0.0
    for_s: float | None = None

    def __post_init__(self) -> None:
        check_count("link.faults: device", self.device, low=0, high=1023)
        check_choice("link.faults: kind", self.kind, FAULTS)
        most = _MOST_DELAY_MS if self.kind == "delay" else 1
        self.value = check_number("link.faults: value", self.value, low=0, high=most)
        self.at_s = check_number("link.faults: at_s", self.at_s, low=0, high=1e6)
        if self.kind == "cut" and self.value not in (0, 1):
            raise ConfigError(f"link.faults: value of a cut: got {self.value:g}, expected 1 or 0")
        if self.for_s is not None:
            self.for_s = check_number("link.faults: for_s", self.for_s, low=0.001, high=1e6)


@dataclass
class LinkChoice:
    """A device's link to the core; `delay_ms` is one way, `rate_mbps` null is no limit."""

    name: str = "ideal"
    delay_ms: float = 0.0
    rate_mbps: float | None = None
    loss_frac: float = 0.0
    queue_kib: int = 16384
    backend: str = "auto"
    faults: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_text("link.name", self.name)
        self.delay_ms = check_number("link.delay_ms", self.delay_ms, low=0, high=_MOST_DELAY_MS)
        if self.rate_mbps is not None:
            self.rate_mbps = check_number("link.rate_mbps", self.rate_mbps, low=0.001, high=_MOST)
        self.loss_frac = check_number("link.loss_frac", self.loss_frac, low=0, high=0.99)
        check_count("link.queue_kib", self.queue_kib, low=4, high=1 << 20)
        check_choice("link.backend", self.backend, LINK_BACKENDS)
        if not isinstance(self.faults, list):
            raise ConfigError(f"link.faults: got {self.faults!r}, expected a list")
        self.faults = [make_options(LinkFault, fault, "link.faults") for fault in self.faults]

    @property
    def spec(self) -> LinkSpec:
        """The link itself, undilated."""
        rate_bps = None if self.rate_mbps is None else self.rate_mbps * 1e6
        return LinkSpec(self.delay_ms / 1e3, rate_bps, self.loss_frac, self.queue_kib << 10)


@dataclass
class TestbedChoice:
    """What makes the devices.

    Attributes:
        time_scale: Multiplies every deadline, beside the dilation.
        dilation: How many times slower everything runs than the devices would; `auto` is the
            least whole number at which they fit this host.
        oversubscribe: Run although the devices do not fit; the results say so.
        fit: The phase that CPU quotas are right for: `decode` (bound by memory) or `prefill`.
        make_swap: Make a swap file where devices need swap and the host has too little.
        calibration: Of backend `sim`: what its costs come from, `reference` or a file that
            `make calibrate` wrote.
        roster: One profile per rank, `r0`, `r1`, ...; empty where all are the `device` axis.
        links: What is different on a rank's link, likewise.
    """

    __test__ = False  # not a test, whatever its name looks like to pytest

    name: str = "local"
    backend: str = "local"
    time_scale: float = 1.0
    dilation: float | str = "auto"
    oversubscribe: bool = False
    fit: str = "decode"
    make_swap: bool = False
    calibration: str = REFERENCE_CALIBRATION
    roster: dict[str, Any] = field(default_factory=dict)
    links: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_choice("testbed.backend", self.backend, BACKENDS)
        self.time_scale = check_number("testbed.time_scale", self.time_scale, low=0.01, high=1000)
        if self.dilation != "auto":
            text = "testbed.dilation"
            if isinstance(self.dilation, str):
                raise ConfigError(f"{text}: got {self.dilation!r}, expected auto or a number >= 1")
            self.dilation = check_number(text, self.dilation, low=1, high=1000)
        check_flag("testbed.oversubscribe", self.oversubscribe)
        check_choice("testbed.fit", self.fit, FITS)
        check_flag("testbed.make_swap", self.make_swap)
        check_text("testbed.calibration", self.calibration)
        if self.calibration != REFERENCE_CALIBRATION and self.backend != "sim":
            raise ConfigError(
                f"testbed.calibration: only testbed.backend=sim has one, got it with"
                f" testbed.backend={self.backend}"
            )
        _check_ranks("testbed.roster", self.roster, whole=True)
        self.roster = {
            f"r{i}": _of_rank("roster", i, "device", DeviceProfile, self.roster[f"r{i}"])
            for i in range(len(self.roster))
        }
        _check_ranks("testbed.links", self.links, whole=False)


def profiles_of(testbed: TestbedChoice, device: DeviceProfile, count: int) -> list[DeviceProfile]:
    """The profile of each of the first `count` devices.

    Raises:
        ConfigError: The testbed has fewer.
    """
    if not testbed.roster:
        return [device] * count
    if count > len(testbed.roster):
        raise ConfigError(
            f"devices: got {count}, the testbed {testbed.name} has {len(testbed.roster)}"
        )
    return list(testbed.roster.values())[:count]


def links_of(testbed: TestbedChoice, link: LinkChoice, count: int) -> list[LinkSpec]:
    """The link of each of the first `count` devices."""
    known = [f.name for f in fields(LinkChoice) if f.name not in ("name", "backend", "faults")]
    specs = []
    for rank in range(count):
        changes = testbed.links.get(f"r{rank}", {})
        for key in changes:
            if key not in known:
                raise ConfigError(
                    f"unknown option testbed.links.r{rank}.{key}{nearest(key, known)}"
                )
        merged = {**vars(replace(link, faults=[])), **changes}
        specs.append(_of_rank("links", rank, "link", LinkChoice, merged).spec)
    return specs


def _of_rank(where: str, rank: int, axis: str, cls: Any, raw: object) -> Any:
    """Options of one rank; what is wrong with them is said of it, not of the axis."""
    name = f"testbed.{where}.r{rank}"
    try:
        return make_options(cls, raw, name)
    except ConfigError as exc:
        raise ConfigError(re.sub(rf"^{axis}\.", f"{name}.", str(exc))) from exc


def _check_ranks(name: str, raw: object, *, whole: bool) -> None:
    """Refuse all but a mapping of r0, r1, ... to options; `whole` ones have no gap."""
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{name}: got {raw!r}, expected r0, r1, ... with options each")
    for rank, value in raw.items():
        if not re.fullmatch(r"r(0|[1-9]\d{0,3})", str(rank)):
            raise ConfigError(f"{name}: got {rank!r}, expected a rank as r0, r1, ...")
        if not isinstance(value, Mapping | DeviceProfile):
            raise ConfigError(f"{name}.{rank}: got {value!r}, expected options")
    expected = [f"r{rank}" for rank in range(len(raw))]
    if whole and sorted(raw) != sorted(expected):
        raise ConfigError(f"{name}: got {', '.join(raw)}, expected {', '.join(expected)}")
