"""What a testbed is: it makes devices, starts programs on them and takes them away.

The harness knows only these protocols, so plain processes, containers and a simulator fit behind
one interface. What programs say arrives in an `Inbox` that all devices of a run share
(`tpi/program/process.py`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, Self

from tpi.errors import TpiError
from tpi.program.process import Inbox, Process


class DeviceError(TpiError):
    """A device could not be made, or a program not be started on it."""

    exit_status = 15
    code = "device"


@dataclass(frozen=True, slots=True)
class Meters:
    """Peak memory of one device since `up`, in bytes, three ways; None with the reason in `words`.

    Attributes:
        rss_hwm: VmHWM, summed over the program's processes: what the paper's monitor reads.
        anon_peak: Largest sampled anonymous memory, summed over the program's processes.
        cgroup_peak: The most that the device's cgroup charged, page cache included.
        words: Why a value is missing, by field name.
    """

    rss_hwm: int | None = None
    anon_peak: int | None = None
    cgroup_peak: int | None = None
    num_samples: int = 0
    words: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class VerificationReport:
    """What was measured of limits and links on the devices themselves.

    Attributes:
        figures: By moment (`before`, `after`), as JSON.
        problems: What is out of tolerance, a line each; then what is measured does not count.
    """

    figures: Mapping[str, object] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    def joined(self, later: "VerificationReport") -> "VerificationReport":
        """Both."""
        figures = {**self.figures, **later.figures}
        return VerificationReport(figures, tuple(dict.fromkeys((*self.problems, *later.problems))))


class Device(Protocol):
    """One machine of the testbed."""

    @property
    def index(self) -> int:
        """Its number among the devices, which becomes the rank."""

    @property
    def address(self) -> str:
        """Where its programs listen and the other devices reach them."""

    @property
    def python(self) -> str:
        """The Python interpreter on the device."""

    def free_port(self) -> int:
        """A TCP port that nobody listens on at the moment."""

    def path_of(self, host_path: Path) -> str:
        """The path under which the device sees a file of the host; a ConfigError if it does not."""

    def run(
        self, argv: Sequence[str], inbox: Inbox, spec: Mapping[str, object] | None = None
    ) -> Process:
        """Start a program; `spec` is written to a file on the device, whose path ends `argv`.

        Raises:
            DeviceError: It could not be started.
        """

    def meter(self) -> Meters:
        """Peaks so far; from any thread, while programs run, after they ended, and after `down`."""

    def facts(self) -> dict[str, object]:
        """What the device is and what limits hold on it, for the run record."""


class Testbed(Protocol):
    """Gives devices and takes them away; leaving the `with` block takes them all."""

    @property
    def name(self) -> str:
        """The backend's name."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What it does not limit or emulate, in words for the user and the record."""

    def up(self, num_devices: int) -> Sequence[Device]:
        """Make fresh devices, or raise a DeviceError."""

    def fault(self, index: int, kind: str, value: float) -> None:
        """Change a device's link (see `testbed.links.linkfault`); without one, a DeviceError."""

    def verify(self, moment: str) -> VerificationReport:
        """Measure whether limits and links hold, `before` programs start or `after` they end."""

    def down(self) -> None:
        """Stop every program and take all devices away. Twice is fine."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.down()
