"""What a study of allreduce latency measured, as cells of figure 3.

The study writes `allreduce.json` beside the run records: one point an algorithm, payload and delay
from device to core. The paper's topology has two links on that way, so the row, the latency of one
link in ms, is half the delay. `source` is the payload. The file has a digest of its own figures, so
that a changed one is no result; files of an older form have none. Read `allreduce_cells` first.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from results.paper.cell import Cell, Place
from results.paper.index import StudyEntry
from results.records.hashing import digest_of
from results.records.schema import RecordError
from tpi.comm.allreduces.registry import PAPER_ALLREDUCES
from tpi.errors import ConfigError, map_errors
from tpi.files import parse_json, read_small_file
from tpi.program.spec import Fields
from tpi.units import format_bytes

STUDY_FILE = "allreduce.json"
_DIGEST = "study_sha256"
_SCHEMA = 1
_LINKS_TO_CORE = 2  # device, gateway, core
_MAX_BYTES = 16 << 20
_PAPER_BYTES = 4
LINKS_MS = ("1", "2", "4", "6", "8", "10")  # of figure 3, 0 left out
# Sources of the closed forms; `computed.py` has the same for the paper's own latencies.
OURS, HOPS = "ours", "published: hops"
_OF_STUDY = "as the study computed it for its own network, headers counted"


def allreduce_cells(
    folder: Path, scale: str, studies: Sequence[StudyEntry] = ()
) -> tuple[Cell, ...]:
    """The study's cells of figure 3, measured and computed; none if there was no study.

    A file that cannot be used gives cells `unusable` for all of the paper's, which say why; so does
    one that is missing, where the index has a reason for that.
    """
    path = folder / STUDY_FILE
    if path.exists():
        try:
            return read_study(path, scale)
        except RecordError as exc:
            return _absent("unusable", str(exc), scale)
    for each in studies:
        if each.exhibit == "figure3" and (each.failure or each.refusal):
            word = "failed" if each.failure else "infeasible"
            return _absent(word, each.failure or each.refusal, scale)
    return ()


def _absent(word: str, detail: str, scale: str) -> tuple[Cell, ...]:
    rows = ("0", *LINKS_MS)
    places = [
        Place("figure3", row, name, "allreduce_s") for row in rows for name in PAPER_ALLREDUCES
    ]
    return tuple(Cell(p, "measured", word=word, scale=scale, detail=detail) for p in places)


def read_body(path: Path) -> Mapping[str, object]:
    """What a study's file holds, its digest checked if it has one.

    Raises:
        RecordError: It is half written, changed, or of another schema.
    """
    where = f"study {path}"
    raw = parse_json(read_small_file(path, _MAX_BYTES, RecordError), where, RecordError)
    if not isinstance(raw, Mapping) or raw.get("schema") != _SCHEMA:
        raise RecordError(f"{where}: not a study of schema {_SCHEMA}; measure it again")
    if _DIGEST in raw and raw != signed(raw):
        raise RecordError(f"{where}: was changed after it was written; measure it again")
    return raw


def signed(body: Mapping[str, object]) -> dict[str, object]:
    """A body with its digest, as it is kept."""
    bare = {name: value for name, value in body.items() if name != _DIGEST}
    return {**bare, _DIGEST: digest_of(bare)}


def read_study(path: Path, scale: str) -> tuple[Cell, ...]:
    """Every point of a study as a cell.

    Raises:
        RecordError: It is half written, changed, of another schema, or a field does not fit.
    """
    where, raw = f"study {path}", read_body(path)
    with map_errors({ConfigError: RecordError}, where):
        fields = Fields(raw, STUDY_FILE)
        dilation = fields.take("dilation", "a factor >= 1", _is_factor)
        rate_mbps = fields.take("rate_mbps", "a number >= 0 or nothing", _is_rate, None)
        points = fields.take("points", "a list of objects", _is_list_of_objects)
        network = "" if rate_mbps is None else f" at {rate_mbps:g} Mbit/s"
        cells = [
            _cells(Fields(point, "points"), scale, float(dilation), network) for point in points
        ]
        # Within: a generator reads its fields when it is asked.
        return tuple(cell for found in cells for cell in found)


def _cells(point: Fields, scale: str, dilation: float, network: str) -> Iterator[Cell]:
    """What was measured, and the closed forms that the study took for its own network."""
    algorithm = point.take_choice("algorithm", PAPER_ALLREDUCES)
    link_ms = point.take("delay_ms", "a number >= 0", _is_number) / _LINKS_TO_CORE
    num_bytes, world_size = point.take_int("num_bytes", 1), point.take_int("world_size", 2)
    median, low, high = (
        float(point.take(name, "a number >= 0", _is_number))
        for name in ("median_s", "low_s", "high_s")
    )
    rounds, payload = point.take_int("rounds", 1), payload_name(num_bytes)
    place = Place("figure3", f"{link_ms:g}", algorithm, "allreduce_s")
    yield Cell(
        place,
        "measured",
        value=median,
        low=low,
        high=high,
        n=rounds,
        scale=scale,
        backend="docker",
        dilation=dilation,
        source=payload,
        detail=f"{world_size} devices{network}; median of {rounds} rounds and their quartiles",
    )
    forms = {"bound_s": OURS if num_bytes == _PAPER_BYTES else f"{OURS}: {payload}"}
    if num_bytes == _PAPER_BYTES:  # hops have no payload: once is enough
        forms["published_s"] = HOPS
    for name, source in forms.items():
        value = float(point.take(name, "a number >= 0", _is_number))
        yield Cell(place, "computed", value=value, source=source, detail=_OF_STUDY)


def payload_name(num_bytes: int) -> str:
    """`4 bytes`, `32 KiB`."""
    return f"{num_bytes} bytes" if num_bytes < 1024 else format_bytes(num_bytes)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0


def _is_rate(value: object) -> bool:
    return value is None or _is_number(value)


def _is_factor(value: object) -> bool:
    return _is_number(value) and value >= 1  # type: ignore[operator]  # _is_number narrows it


def _is_list_of_objects(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, Mapping) for v in value)
