"""Which run stands behind which cell: `index.json` beside the run records of one scale.

The driver of the paper's tables writes it, whatever renders them reads it, so that nothing has to
be composed or planned again to draw a table from records:

{"schema_version": 1, "scale": "small", "entries": [
  {"exhibit": "table1", "row": "llama2-3b", "column": "on", "system": "tpi",
   "overrides": ["model=llama2-3b", "devices=8", ...], "run_id": "tpi-0123456789abcdef",
   "refusal": "", "failure": "", "source": "0123456789ab"}, ...],
 "studies": [{"name": "allreduce", "exhibit": "figure3", "refusal": "no Docker", "failure": ""}],
 "sources": {"tpi": "0123456789ab"}}

An entry without a `run_id` says in `refusal` why this machine cannot run it, or in `failure` what
went wrong; one that was not run yet has neither. `source` is the version of the program text that
its run id stands for, and `sources` those of the last pass.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from results.paper.cell import ALL_EXHIBITS, SCALES
from results.records.hashing import split_run_id
from results.records.schema import RecordError
from tpi.errors import ConfigError, ResourceError, map_errors
from tpi.files import parse_json, read_small_file, write_atomic
from tpi.program.spec import Fields

INDEX_FILE = "index.json"
INDEX_VERSION = 1
_MAX_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Entry:
    """One run that a row and a column of an exhibit need; it gives several metrics."""

    exhibit: str
    row: str
    column: str
    system: str
    overrides: tuple[str, ...]
    run_id: str = ""
    refusal: str = ""
    failure: str = ""
    source: str = ""

    @property
    def is_simulated(self) -> bool:
        """Whether its run is one of the simulator's, whatever became of it."""
        chosen = dict(each.partition("=")[::2] for each in self.overrides)
        backend = chosen.get("testbed.backend")
        return backend == "sim" or (backend is None and chosen.get("testbed") == "sim")

    @property
    def program(self) -> str:
        """What it runs, as `Index.sources` names it."""
        return f"{self.system}, simulated" if self.is_simulated else self.system


@dataclass(frozen=True, slots=True)
class StudyEntry:
    """Why a study, which is no run of a system, has given nothing; empty where nothing is wrong."""

    name: str
    exhibit: str
    refusal: str = ""
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Index:
    """All entries of one scale.

    Attributes:
        sources: By program, the version of its text when runs were last looked at.
    """

    scale: str
    entries: tuple[Entry, ...] = ()
    studies: tuple[StudyEntry, ...] = ()
    sources: Mapping[str, str] = field(default_factory=dict)


def write_index(folder: Path, index: Index) -> None:
    """Write `index.json`, whole or not at all.

    Raises:
        ResourceError: The disk is full or cannot be written.
    """
    body = {"schema_version": INDEX_VERSION, **asdict(index)}
    path = folder / INDEX_FILE
    with map_errors({OSError: ResourceError}, f"cannot write {path}"):
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(path, (json.dumps(body, indent=1) + "\n").encode())


def read_index(folder: Path) -> Index:
    """Read and check `index.json`.

    Raises:
        RecordError: It is missing, half written, of another version, or a field does not fit.
    """
    path = folder / INDEX_FILE
    where = f"index {path}"
    if not path.exists():
        scale = folder.name if folder.name in SCALES else "..."
        raise RecordError(f"{where}: nothing was run at this scale yet: make paper SCALE={scale}")
    raw = parse_json(
        read_small_file(path, _MAX_BYTES, RecordError, follow=True), where, RecordError
    )
    if not isinstance(raw, dict) or raw.get("schema_version") != INDEX_VERSION:
        raise RecordError(f"{where}: not an index of version {INDEX_VERSION}")
    with map_errors({ConfigError: RecordError}, where):
        fields = Fields(raw, INDEX_FILE)
        fields.take_int("schema_version", INDEX_VERSION)
        scale = fields.take_choice("scale", SCALES)
        entries = fields.take("entries", "a list of objects", _is_list_of_objects)
        studies = fields.take("studies", "a list of objects", _is_list_of_objects, [])
        sources = fields.take("sources", "an object of strings", _is_object_of_str, {})
        fields.finish()
        return Index(scale, _entries(entries), _studies(studies), sources)


def _entries(raw: Sequence[dict[str, object]]) -> tuple[Entry, ...]:
    entries = []
    for each in raw:
        fields = Fields(each, "entries")
        entries.append(
            Entry(
                exhibit=fields.take_choice("exhibit", ALL_EXHIBITS),
                row=fields.take_str("row"),
                column=fields.take_str("column"),
                system=fields.take_str("system"),
                overrides=tuple(fields.take("overrides", "a list of strings", _is_list_of_str)),
                run_id=fields.take("run_id", "a run's name or nothing", _is_run_id),
                refusal=fields.take("refusal", "a string", _is_str),
                # Older files have neither.
                failure=fields.take("failure", "a string", _is_str, ""),
                source=fields.take("source", "a string", _is_str, ""),
            )
        )
        fields.finish()
    return tuple(entries)


def _studies(raw: Sequence[dict[str, object]]) -> tuple[StudyEntry, ...]:
    studies = []
    for each in raw:
        fields = Fields(each, "studies")
        studies.append(
            StudyEntry(
                name=fields.take_str("name"),
                exhibit=fields.take_choice("exhibit", ALL_EXHIBITS),
                refusal=fields.take("refusal", "a string", _is_str),
                failure=fields.take("failure", "a string", _is_str),
            )
        )
        fields.finish()
    return tuple(studies)


def _is_str(value: object) -> bool:
    return isinstance(value, str)


def _is_list_of_objects(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _is_list_of_str(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_object_of_str(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(item, str) for item in value.values())


def _is_run_id(value: object) -> bool:
    # It becomes a folder's name.
    if not isinstance(value, str) or "/" in value or "\0" in value:
        return False
    return not value or split_run_id(value) is not None
