"""What limits and links should measure, how far off a figure may be, and the report. Pure.

A figure may differ by a tenth from what is expected; a round trip always by 0.3 ms of the emulated
clock; a memory limit not at all. `probe.py` does the measuring.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from testbed.limits.limits import DeviceLimits
from testbed.links.link import HEADER_BYTES, LinkSpec, goodput_bps, ping_s

REL_BAND = 0.1
RTT_BAND_S = 0.3e-3

Verdict = Literal["ok", "out", "recorded", "unmeasured"]
What = Literal["cpus", "memory", "swap", "read_bps", "rtt_s", "rate_bps"]

# How a figure is shown: name, factor to its unit, unit, digits.
_FORMATS: dict[str, tuple[str, float, str, int]] = {
    "cpus": ("CPU", 1.0, "cores", 3),
    "memory": ("memory limit", 1.0, "bytes", 0),
    "swap": ("swap limit", 1.0, "bytes", 0),
    "read_bps": ("disk read rate", 1e-6, "MB/s", 1),
    "rtt_s": ("RTT to the master", 1e3, "ms", 2),
    "rate_bps": ("rate to the master", 1e-6, "Mbit/s", 1),
}


@dataclass(frozen=True, slots=True)
class Expected:
    """What must hold on one device, and the host's files by which its disk rate is measured."""

    limits: DeviceLimits
    link: LinkSpec
    files: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class Figure:
    """One thing measured on one device.

    Attributes:
        what: Which limit or property of the link; the unit is in the name.
        expected: None if it is not limited.
        measured: None if it could not be measured; `why` has the reason.
        band: How far apart the two may be.
        verdict: `recorded` where nothing is expected.
        is_upper: Whether only more than expected is wrong.
        tries: How often it was measured; the last time counts.
    """

    device: int
    what: What
    expected: float | None
    measured: float | None
    band: float
    verdict: Verdict
    why: str = ""
    is_upper: bool = False
    tries: int = 1

    @property
    def deviation(self) -> float | None:
        """Measured minus expected."""
        if self.expected is None or self.measured is None:
            return None
        return self.measured - self.expected

    @property
    def problem(self) -> str | None:
        """What is wrong, in one line; None if nothing is."""
        name, factor, unit, digits = _FORMATS[self.what]
        if self.verdict == "unmeasured":
            return f"device {self.device}: {name} could not be measured: {self.why}"
        if self.verdict != "out" or self.expected is None or self.measured is None:
            return None
        most = "at most " if self.is_upper else ""
        band = f" +- {self.band * factor:.{digits}f}" if self.band else ""
        wanted = f"{most}{self.expected * factor:.{digits}f}{band} {unit}"
        got = f"{self.measured * factor:.{digits}f} {unit}"
        return f"device {self.device}: {name} {got}, expected {wanted}"


@dataclass(frozen=True, slots=True)
class ProbeReport:
    """All figures of one probe, by device and in the order they were taken, and its wall time."""

    figures: tuple[Figure, ...]
    wall_s: float = 0.0

    @property
    def problems(self) -> tuple[str, ...]:
        """What is out of tolerance or could not be measured, a line each."""
        return tuple(f.problem for f in self.figures if f.problem is not None)

    def to_json(self) -> dict[str, object]:
        """As it stands in the run record."""
        return {
            "figures": [{**asdict(f), "deviation": f.deviation} for f in self.figures],
            "problems": list(self.problems),
            "wall_s": round(self.wall_s, 3),
        }


def judge(
    device: int,
    what: What,
    expected: float | None,
    measured: float | None,
    *,
    band: float | None = None,
    why: str = "",
    is_upper: bool = False,
) -> Figure:
    """Compare a measurement with what it should be; `band` is a tenth of that unless given."""
    if band is None:
        band = REL_BAND * (expected or 0.0)
    verdict: Verdict = "ok"
    if expected is None:
        verdict = "recorded"
    elif measured is None:
        verdict = "unmeasured"
    else:
        off = measured - expected
        # A hair more than the band, which is itself a rounded product.
        if (off if is_upper else abs(off)) > band * (1 + 1e-9):
            verdict = "out"
    return Figure(device, what, expected, measured, band, verdict, why, is_upper)


def judge_limit(device: int, what: What, asked: int | None, in_force: object) -> Figure:
    """Compare a limit in bytes with the kernel's, which counts whole pages."""
    expected = None if asked is None else asked & ~4095
    measured = float(in_force) if isinstance(in_force, int | float) else None
    if expected is not None and measured is None:
        return Figure(device, what, expected, None, 0.0, "unmeasured", "no limit is in force")
    return judge(device, what, expected, measured, band=0.0)


def measured_twice(measure: Callable[[], list[Figure]]) -> list[Figure]:
    """Measure, and once more if something is wrong, since the host may have been busy for once."""
    first = measure()
    if all(figure.problem is None for figure in first):
        return first
    return [replace(figure, tries=2) for figure in measure()]


def expected_rtt_s(link: LinkSpec, master: LinkSpec, payload_bytes: int = 1) -> float:
    """Round trip of a small request and an equally small answer between a device and the master."""
    return ping_s(HEADER_BYTES + payload_bytes, link, master)


def rtt_band_s(expected_s: float, dilation: float) -> float:
    """How far a round trip may be off."""
    return max(REL_BAND * expected_s, RTT_BAND_S * dilation)


def expected_goodput_bps(link: LinkSpec, master: LinkSpec) -> float | None:
    """Payload bits per second of one bulk transfer; None if nothing limits it."""
    rates = [rate for rate in (link.rate_bps, master.rate_bps) if rate]
    return goodput_bps(min(rates)) if rates else None


def path_loss(link: LinkSpec, master: LinkSpec) -> float:
    """Share of packets lost between a device and the master, one way."""
    return 1 - (1 - link.loss_frac) * (1 - master.loss_frac)
