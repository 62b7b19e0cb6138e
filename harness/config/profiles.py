"""The options of devices, links and testbeds: one dataclass per axis, as in `config.py`.

A testbed names a backend and, if its devices differ, one profile per rank (`roster`) and one link
per rank (`links`, only what differs from the `link` axis). Values are those of real devices;
`dilation.py` scales them to what is enforced on this host.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from baselines.validators import (
    check_choice,
    check_count,
    check_fields,
    check_number,
    check_size,
    check_text,
)
from testbed.links.link import LinkSpec
from tpi.errors import ConfigError

REFERENCE_CALIBRATION = "reference"  # the one that comes with the project
LINK_BACKENDS = ("auto", "netem", "switch", "switch-c", "switch-python")
FAULTS = ("cut", "delay", "drop", "duplicate")
# On the command line a size may be a text such as 4GiB, which OmegaConf must let through; its check
# makes it bytes, so that all other code sees a whole number.
if TYPE_CHECKING:
    Size = int
else:
    Size = int | str
_MOST_DELAY_MS = 60_000
_LEAST_MEMORY = 6 << 20  # Docker takes no less


def one_of(*choices: str) -> partial[object]:
    """The check of a field that is one of some words."""
    return partial(check_choice, choices=choices)


def _between(low: float, high: float) -> partial[float]:
    return partial(check_number, low=low, high=high)


Name = Annotated[str, check_text]
_Rate = Annotated[float | None, _between(0.01, 1e6)]


@dataclass
class DeviceProfile:
    """What a device is like; null is "not limited". Units are those of `help.py`.

    `threads` of null are as many as the device's share of this host has cores.
    """

    name: Name = "local"
    cores: _Rate = None
    core_speed: Annotated[float, _between(0.001, 1000)] = 1.0
    mem_gbps: _Rate = None
    memory: Annotated[Size | None, partial(check_size, low=_LEAST_MEMORY)] = None
    swap: Size = 0
    disk_read_mb_s: _Rate = None
    disk_write_mb_s: _Rate = None
    threads: int | None = None

    def __post_init__(self) -> None:
        check_fields(self, "device.")
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
    """A change of one device's link while the measured request runs.

    Attributes:
        device: Its rank.
        kind: `cut` (1 cuts, 0 restores), `delay` (ms more, one way), `drop` or `duplicate` (share
            of packets, 0 to 1).
        at_s: Seconds after the measured request began, on the emulated clock.
        for_s: Until it is undone; null leaves it.
    """

    device: Annotated[int, partial(check_count, low=0, high=1023)]
    kind: Annotated[str, one_of(*FAULTS)]
    value: float = 1.0
    at_s: Annotated[float, _between(0, 1e6)] = 0.0
    for_s: Annotated[float | None, _between(0.001, 1e6)] = None

    def __post_init__(self) -> None:
        check_fields(self, "link.faults: ")
        most = _MOST_DELAY_MS if self.kind == "delay" else 1
        self.value = check_number("link.faults: value", self.value, low=0, high=most)
        if self.kind == "cut" and self.value not in (0, 1):
            raise ConfigError(f"link.faults: value of a cut: got {self.value:g}, expected 1 or 0")


@dataclass
class LinkChoice:
    """A device's link to the core; `delay_ms` is one way, `rate_mbps` null is no limit."""

    name: Name = "ideal"
    delay_ms: Annotated[float, _between(0, _MOST_DELAY_MS)] = 0.0
    rate_mbps: Annotated[float | None, _between(0.001, 1e9)] = None
    loss_frac: Annotated[float, _between(0, 0.99)] = 0.0
    queue_kib: Annotated[int, partial(check_count, low=4, high=1 << 20)] = 16384
    backend: Annotated[str, one_of(*LINK_BACKENDS)] = "auto"
    faults: list[LinkFault] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_fields(self, "link.")

    @property
    def spec(self) -> LinkSpec:
        """The link itself, undilated."""
        rate_bps = None if self.rate_mbps is None else self.rate_mbps * 1e6
        return LinkSpec(self.delay_ms / 1e3, rate_bps, self.loss_frac, self.queue_kib << 10)


@dataclass
class TestbedChoice:
    """The backend that makes the devices.

    Attributes:
        dilation: `auto` is the least whole number at which the devices fit this host.
        roster: One profile per rank, `r0`, `r1`, ...; empty if all are the `device` axis.
        links: The options that differ on a rank's link, by rank as in `roster`.
    """

    __test__ = False  # not a test, whatever its name looks like to pytest

    name: str = "local"
    backend: Annotated[str, one_of("local", "docker", "sim")] = "local"
    time_scale: Annotated[float, _between(0.01, 1000)] = 1.0
    dilation: int | float | str = "auto"
    oversubscribe: bool = False
    fit: Annotated[str, one_of("decode", "prefill")] = "decode"
    make_swap: bool = False
    calibration: Name = REFERENCE_CALIBRATION
    roster: dict[str, Any] = field(default_factory=dict)
    links: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self, "testbed.")
        if self.dilation != "auto":
            text = "testbed.dilation"
            if isinstance(self.dilation, str):
                raise ConfigError(f"{text}: got {self.dilation!r}, expected auto or a number >= 1")
            self.dilation = check_number(text, self.dilation, low=1, high=1000)
        if self.calibration != REFERENCE_CALIBRATION and self.backend != "sim":
            raise ConfigError(
                f"testbed.calibration: only testbed.backend=sim has one, got it with"
                f" testbed.backend={self.backend}"
            )
        _check_ranks("testbed.roster", self.roster, whole=True)
        self.roster = {f"r{i}": self.roster[f"r{i}"] for i in range(len(self.roster))}
        _check_ranks("testbed.links", self.links, whole=False)


def _check_ranks(name: str, given: Mapping[str, object], *, whole: bool) -> None:
    """Refuse other names than r0, r1, ...; `whole` ones have no gap."""
    for rank in given:
        if not re.fullmatch(r"r(0|[1-9]\d{0,3})", rank):
            raise ConfigError(f"{name}: got {rank!r}, expected a rank as r0, r1, ...")
    expected = [f"r{rank}" for rank in range(len(given))]
    if whole and sorted(given) != sorted(expected):
        raise ConfigError(f"{name}: got {', '.join(given)}, expected {', '.join(expected)}")
