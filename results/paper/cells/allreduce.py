"""What a study of allreduce latency measured, as cells of figure 3.

The study writes `allreduce.json` beside the run records: one point for each algorithm, payload and
delay from device to core. The paper's topology has two links on that way, so the row, the latency
of one link in ms, is half the delay. `source` is the payload. The file has a digest of its content;
files of an older form have none.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct

from results.paper.cell import Cell, Place, StudiedNetwork
from results.paper.index import StudyEntry
from results.records.hashing import digest_of
from results.records.schema import RecordError
from testbed.host.environment import HostFacts
from tpi.comm.allreduces.registry import PAPER_ALLREDUCES
from tpi.decode import Count, convert, one_of
from tpi.files import parse_json, read_small_file
from tpi.units import format_bytes

STUDY_FILE = "allreduce.json"
_DIGEST = "study_sha256"
_LINKS_TO_CORE = 2  # device, gateway, core
_MAX_BYTES = 16 << 20
_PAPER_BYTES = 4
LINKS_MS = ("1", "2", "4", "6", "8", "10")  # of figure 3, 0 left out
# Sources of the closed forms; `computed.py` has the same for the paper's own latencies.
OURS, HOPS = "ours", "published: hops"
_OF_STUDY = "as the study computed it for its own network, headers counted"

_NumberOrZero = Annotated[float, Meta(ge=0)]
Key = tuple[str, float, int, int, int]


class Point(Struct, frozen=True, forbid_unknown_fields=True):
    """One latency, undilated, beside what it should be."""

    algorithm: Annotated[str, one_of(PAPER_ALLREDUCES)]
    delay_ms: int | _NumberOrZero  # one way, device to core
    num_bytes: Count
    world_size: Annotated[int, Meta(ge=2)]
    median_s: _NumberOrZero  # over rounds; `low_s` and `high_s` are the quartiles
    low_s: _NumberOrZero
    high_s: _NumberOrZero
    rounds: Count
    bound_s: _NumberOrZero  # delays and payloads with their headers, the ports they share counted
    published_s: _NumberOrZero  # the paper's: hops alone (Propositions 1 and 2)

    @property
    def key(self) -> Key:
        """What it is the latency of."""
        return self.algorithm, self.delay_ms, self.num_bytes, self.world_size, self.rounds


class Study(Struct, frozen=True, forbid_unknown_fields=True):
    """A study's file: its points and how they were measured."""

    points: Annotated[tuple[Point, ...], Meta(min_length=1)]
    dilation: Annotated[float, Meta(ge=1)]
    rate_mbps: _NumberOrZero | None = None
    environment: HostFacts | None = None
    study_sha256: str = ""  # of all the rest; empty in files of an older form
    schema: Literal[1] = 1


def allreduce_cells(
    folder: Path, scale: str, studies: Sequence[StudyEntry] = ()
) -> tuple[Cell, ...]:
    """The study's cells of figure 3, or cells that say why there are none."""
    path = folder / STUDY_FILE
    if path.exists():
        try:
            return tuple(cells_of(read_study(path), scale))
        except RecordError as exc:
            return _absent("unusable", str(exc), scale)
    for each in studies:
        if each.exhibit == "figure3" and (each.failure or each.refusal):
            reason = "failed" if each.failure else "infeasible"
            return _absent(reason, each.failure or each.refusal, scale)
    return ()


def _absent(reason: str, detail: str, scale: str) -> tuple[Cell, ...]:
    return tuple(
        Cell(
            Place("figure3", row, name, "allreduce_s"),
            "measured",
            missing_reason=reason,
            scale=scale,
            detail=detail,
        )
        for row in ("0", *LINKS_MS)
        for name in PAPER_ALLREDUCES
    )


def read_study(path: Path) -> Study:
    """Read a study's file and check its digest, if it has one; a RecordError says what is wrong."""
    where = f"study {path}"
    data = read_small_file(path, _MAX_BYTES, RecordError)
    raw = convert(parse_json(data, where, RecordError), dict[str, object], where, RecordError)
    study = convert(raw, Study, where, RecordError)
    if study.study_sha256 and raw != signed(raw):
        raise RecordError(f"{where}: was changed after it was written; measure it again")
    return study


def signed(body: Mapping[str, object]) -> dict[str, object]:
    """A body with its digest, as it is kept."""
    bare = {name: value for name, value in body.items() if name != _DIGEST}
    return {**bare, _DIGEST: digest_of(bare)}


def cells_of(study: Study, scale: str) -> Iterator[Cell]:
    """Every point of a study: what was measured, and the closed forms for its own network."""
    for point in study.points:
        is_small = point.num_bytes < 1024
        payload = f"{point.num_bytes} bytes" if is_small else format_bytes(point.num_bytes)
        network = StudiedNetwork(point.world_size, study.rate_mbps)
        row = f"{point.delay_ms / _LINKS_TO_CORE:g}"
        place = Place("figure3", row, point.algorithm, "allreduce_s")
        yield Cell(
            place,
            "measured",
            value=point.median_s,
            low=point.low_s,
            high=point.high_s,
            n=point.rounds,
            scale=scale,
            backend="docker",
            dilation=study.dilation,
            source=payload,
            network=network,
            detail=f"{network}; median of {point.rounds} rounds and their quartiles",
        )
        forms = {f"{OURS}: {payload}": point.bound_s}
        if point.num_bytes == _PAPER_BYTES:  # hops have no payload: once is enough
            forms = {OURS: point.bound_s, HOPS: point.published_s}
        for source, value in forms.items():
            yield Cell(place, "computed", value=value, source=source, detail=_OF_STUDY)
