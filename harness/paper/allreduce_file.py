"""The file of an allreduce study: its points, how they were measured, and a digest of them.

It is written after every delay, so that a study that was interrupted goes on. What is there serves
a study that asks for the same network, payloads and rounds. Read `Asked` first.
"""

import contextlib
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from msgspec import Struct, to_builtins

from results.paper.cells.allreduce import read_body, signed
from results.records.schema import RecordError
from testbed.host.environment import host_environment, host_fingerprint
from tpi.comm.allreduces.registry import PAPER_ALLREDUCES
from tpi.decode import convert
from tpi.errors import ConfigError, map_errors
from tpi.files import write_atomic

_SCHEMA = 1
Key = tuple[str, float, int, int, int]


class Point(Struct, frozen=True, forbid_unknown_fields=True):
    """One latency, undilated, beside what it should be.

    Attributes:
        delay_ms: One way, device to core.
        median_s: Over rounds; `low_s` and `high_s` are the quartiles.
        bound_s: Delays and payloads with their headers, the ports they share counted.
        published_s: The paper's: hops alone (Propositions 1 and 2).
    """

    algorithm: str
    delay_ms: float
    num_bytes: int
    world_size: int
    median_s: float
    low_s: float
    high_s: float
    rounds: int
    bound_s: float
    published_s: float

    @property
    def key(self) -> Key:
        """What it is the latency of."""
        return self.algorithm, self.delay_ms, self.num_bytes, self.world_size, self.rounds


class StudyFile(Struct, frozen=True):
    """What the file holds; `read_body` has checked schema and digest."""

    points: list[Point]
    environment: dict[str, object] = {}
    dilation: float | None = None
    rate_mbps: float | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """Everything that decides the figures of a study."""

    devices: int
    delays: tuple[float, ...]
    bytes: tuple[int, ...]
    rounds: int
    rate_mbps: float
    dilation: float

    def keys(self, delay_ms: float) -> Iterator[Key]:
        """Every latency that is asked for at one delay."""
        for algorithm, num_bytes in itertools.product(PAPER_ALLREDUCES, self.bytes):
            yield algorithm, delay_ms, num_bytes, self.devices, self.rounds

    def is_kept(self, path: Path) -> bool:
        """Whether a file has all of it.

        Raises:
            ConfigError: The file is there and is no study.
        """
        if not path.exists():
            return False
        found = {point.key for point in self._same(path)}
        return all(found.issuperset(self.keys(delay_ms)) for delay_ms in self.delays)

    def to_go_on_from(self, path: Path) -> dict[float, list[Point]]:
        """By delay, what is measured already: whole delays alone, on this host.

        Raises:
            ConfigError: The file is there and is no study.
        """
        if not path.exists():
            return {}
        environment = read_study(path).environment
        if host_fingerprint(environment) != host_fingerprint(host_environment()):
            return {}
        points = {point.key: point for point in self._same(path)}
        return {
            delay_ms: [points[key] for key in self.keys(delay_ms)]
            for delay_ms in self.delays
            if points.keys() >= set(self.keys(delay_ms))
        }

    def keep(self, path: Path, points: Sequence[Point]) -> None:
        """Write what is measured until now, whole or not at all.

        Raises:
            OSError: The disk is full or cannot be written.
        """
        body = {
            "schema": _SCHEMA,
            "dilation": self.dilation,
            "rate_mbps": self.rate_mbps,
            "environment": host_environment(),
            "points": to_builtins(points),
        }
        write_atomic(path, json.dumps(signed(body), indent=1).encode())

    def _same(self, path: Path) -> list[Point]:
        """The points of a file if they were measured on the network that is asked for."""
        kept, asked = read_study(path), (self.dilation, self.rate_mbps)
        return kept.points if (kept.dilation, kept.rate_mbps) == asked else []


def keep_aside(path: Path, kept: Sequence[Point]) -> Path | None:
    """Rename a study whose file has more than is kept of it: `x.json` to `x.1.json`.

    A file that is no study any more is set aside as well.
    """
    if not path.exists():
        return None
    with contextlib.suppress(ConfigError):
        if set(read_points(path)) <= set(kept):
            return None
    names = (path.with_suffix(f".{number}{path.suffix}") for number in itertools.count(1))
    aside = next(name for name in names if not name.exists())
    path.rename(aside)
    return aside


def read_points(path: Path) -> list[Point]:
    """What a study wrote.

    Raises:
        ConfigError: It cannot be read, was changed, or is not such a file.
    """
    return read_study(path).points


def read_study(path: Path) -> StudyFile:
    """The whole file; raises as `read_points`."""
    where = f"{path}: not a study of allreduce"
    with map_errors({RecordError: ConfigError}, where):
        return convert(read_body(path), StudyFile, where, ConfigError)
