"""Which run stands behind which cell: `index.json` beside the run records of one scale.

The driver of the paper's tables writes it, whatever renders them reads it, so that nothing has to
be composed or planned again to draw a table from records:

{"schema_version": 1, "scale": "small", "entries": [
  {"exhibit": "table1", "row": "llama2-3b", "column": "on", "system": "tpi",
   "overrides": ["model=llama2-3b", "devices=8", ...], "run_id": "tpi-0123456789abcdef",
   "refusal": ""}, ...]}

An entry whose run was refused before it started has no `run_id`, and `refusal` says why; one that
was not run yet has neither.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from results.cells import EXHIBITS, SCALES
from results.schema import RecordError
from tpi.errors import ConfigError, ResourceError, map_errors
from tpi.files import write_atomic
from tpi.spec import Fields

INDEX_FILE = "index.json"
INDEX_VERSION = 1


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


@dataclass(frozen=True, slots=True)
class Index:
    """All entries of one scale."""

    scale: str
    entries: tuple[Entry, ...] = ()


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
    with map_errors({OSError: RecordError, ValueError: RecordError}, where):
        raw = json.loads(path.read_bytes())
    if not isinstance(raw, dict) or raw.get("schema_version") != INDEX_VERSION:
        raise RecordError(f"{where}: not an index of version {INDEX_VERSION}")
    with map_errors({ConfigError: RecordError}, where):
        fields = Fields(raw, INDEX_FILE)
        fields.take_int("schema_version", INDEX_VERSION)
        scale = fields.take_choice("scale", SCALES)
        entries = fields.take("entries", "a list of objects", _is_list_of_objects)
        fields.finish()
        return Index(scale, _entries(entries))


def _entries(raw: Sequence[dict[str, object]]) -> tuple[Entry, ...]:
    entries = []
    for each in raw:
        fields = Fields(each, "entries")
        entries.append(
            Entry(
                exhibit=fields.take_choice("exhibit", EXHIBITS),
                row=fields.take_str("row"),
                column=fields.take_str("column"),
                system=fields.take_str("system"),
                overrides=tuple(fields.take("overrides", "a list of strings", _is_list_of_str)),
                run_id=fields.take("run_id", "a string", _is_run_id),
                refusal=fields.take("refusal", "a string", lambda v: isinstance(v, str)),
            )
        )
        fields.finish()
    return tuple(entries)


def _is_list_of_objects(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _is_list_of_str(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_run_id(value: object) -> bool:
    # It becomes a folder's name.
    return isinstance(value, str) and "/" not in value and value not in (".", "..")
