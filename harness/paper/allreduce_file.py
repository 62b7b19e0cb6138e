"""What is asked of an allreduce study, and its file: points, their network, and a digest of them.

The file is written after every delay, so that an interrupted study goes on. Its points serve every
study that asks for the same network, payloads and rounds.
"""

import contextlib
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from baselines.validators import check_choice, check_count, check_number
from harness.config.profiles import LINK_BACKENDS
from results.paper.cells.allreduce import Key, Point, Study, read_study, signed
from results.records.schema import RecordError
from testbed.host.environment import host_environment, host_fingerprint
from testbed.links.link import LinkSpec
from tpi.comm.allreduces.registry import PAPER_ALLREDUCES
from tpi.errors import ConfigError, map_errors
from tpi.files import write_atomic


@dataclass(frozen=True, slots=True)
class Asked:
    """The options of a study; those without a default decide its figures."""

    devices: int
    delays: tuple[float, ...]
    bytes: tuple[int, ...]
    rounds: int
    rate_mbps: float
    dilation: float
    backend: str = "auto"
    work_dir: str = "weights"
    out: Path | None = None
    fresh: bool = False

    def __post_init__(self) -> None:
        check_count("--devices", self.devices, low=2, high=64)
        check_count("--rounds", self.rounds, low=1, high=10_000)
        check_number("--dilation", self.dilation, low=1, high=1000)
        check_number("--rate-mbps", self.rate_mbps, low=0.001, high=1e6)
        check_choice("--backend", self.backend, LINK_BACKENDS)
        for name, values in (("--delays", self.delays), ("--bytes", self.bytes)):
            if not values or len(set(values)) < len(values):
                raise ConfigError(
                    f"{name}: got {[*values]}, expected at least one value, each once"
                )
        for delay_ms in self.delays:
            check_number("--delays", delay_ms, low=0, high=60_000)
        for num_bytes in self.bytes:
            check_count("--bytes", num_bytes, low=4, high=64 << 20)
            if num_bytes % 4:
                raise ConfigError(
                    f"--bytes: got {num_bytes}, expected a multiple of 4, whole floats"
                )
        if self.out is not None and self.out.is_dir():
            raise ConfigError(f"--out: {self.out} is a folder, expected a file")

    @property
    def cells(self) -> list[tuple[str, int]]:
        """Every algorithm and payload."""
        return list(itertools.product(PAPER_ALLREDUCES, self.bytes))

    def link(self, delay_ms: float) -> LinkSpec:
        """The link of a device at one delay, undilated."""
        return LinkSpec(delay_ms / 1e3, self.rate_mbps * 1e6, 0.0, 16 << 20)

    def keys(self, delay_ms: float) -> Iterator[Key]:
        """Every latency that is asked for at one delay."""
        for algorithm, num_bytes in self.cells:
            yield algorithm, delay_ms, num_bytes, self.devices, self.rounds

    def is_kept(self, path: Path) -> bool:
        """Whether a file has all of it; raises ConfigError if the file is no study."""
        found = {point.key for point in self._same(path)}
        return all(found.issuperset(self.keys(delay_ms)) for delay_ms in self.delays)

    def to_go_on_from(self, path: Path) -> dict[float, list[Point]]:
        """The points of this host by delay, of complete delays only; raises as `is_kept`."""
        host = _study(path).environment if path.exists() else None
        if host is None or host_fingerprint(host) != host_fingerprint(host_environment()):
            return {}
        points = {point.key: point for point in self._same(path)}
        return {
            delay_ms: [points[key] for key in self.keys(delay_ms)]
            for delay_ms in self.delays
            if points.keys() >= set(self.keys(delay_ms))
        }

    def keep(self, path: Path, points: Sequence[Point]) -> None:
        """Write all points so far, whole or not at all; raises OSError if the disk refuses."""
        study = Study(tuple(points), self.dilation, self.rate_mbps, host_environment())
        body = msgspec.to_builtins(study)
        write_atomic(path, json.dumps(signed(body), indent=1).encode())

    def _same(self, path: Path) -> list[Point]:
        """The points of a file if they were measured on the network that is asked for."""
        if not path.exists():
            return []
        kept = _study(path)
        is_same = (kept.dilation, kept.rate_mbps) == (self.dilation, self.rate_mbps)
        return list(kept.points) if is_same else []


def keep_aside(path: Path, kept: Sequence[Point]) -> Path | None:
    """Rename a file that is no study or has more points than `kept`: `x.json` to `x.1.json`."""
    if not path.exists():
        return None
    with contextlib.suppress(ConfigError):
        if set(read_points(path)) <= set(kept):
            return None
    names = (path.with_suffix(f".{number}{path.suffix}") for number in itertools.count(1))
    return path.rename(next(name for name in names if not name.exists()))


def read_points(path: Path) -> list[Point]:
    """The points of a file; raises ConfigError if it is no study or was changed."""
    return list(_study(path).points)


def _study(path: Path) -> Study:
    with map_errors({RecordError: ConfigError}, f"{path}: not a study of allreduce"):
        return read_study(path)
