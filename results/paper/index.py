"""Which run stands behind which cell: `index.json` beside the run records of one scale.

The driver of the paper's tables writes it. Tables are drawn from it without composing or planning:

{"schema_version": 1, "scale": "small", "entries": [
  {"exhibit": "table1", "row": "llama2-3b", "column": "on", "system": "tpi",
   "overrides": ["model=llama2-3b", "devices=8", ...], "run_id": "tpi-0123456789abcdef",
   "refusal": "", "failure": "", "source": "0123456789ab"}, ...],
 "studies": [{"name": "allreduce", "exhibit": "figure3", "refusal": "no Docker", "failure": ""}],
 "sources": {"tpi": "0123456789ab"}}

An entry without a `run_id` says in `refusal` why this machine cannot run it, or in `failure` what
went wrong; an entry that was not run yet has neither. `source` is the version of its program's
text.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from results.paper.cell import ALL_EXHIBITS, SCALES
from results.records.schema import RecordError
from tpi.decode import Text, decode, one_of
from tpi.errors import ResourceError, map_errors
from tpi.files import read_small_file, write_atomic

INDEX_FILE = "index.json"
_MAX_BYTES = 64 << 20
Holder = Annotated[str, one_of(ALL_EXHIBITS)]
# It becomes a folder's name.
_RUN_ID = Meta(
    pattern=r"^(?:[^/\x00\n]+-[0-9a-f]{16}(?:-\d{1,9})?)?\Z", description="a run's name or nothing"
)


class Entry(Struct, frozen=True, forbid_unknown_fields=True):
    """One run that a row and a column of an exhibit need; it gives several metrics."""

    exhibit: Holder
    row: Text
    column: Text
    system: Text
    overrides: tuple[str, ...]
    run_id: Annotated[str, _RUN_ID] = ""
    refusal: str = ""
    failure: str = ""
    source: str = ""

    @property
    def is_simulated(self) -> bool:
        """Whether the simulator runs it."""
        chosen = dict(each.partition("=")[::2] for each in self.overrides)
        backend = chosen.get("testbed.backend")
        return backend == "sim" or (backend is None and chosen.get("testbed") == "sim")

    @property
    def program(self) -> str:
        """What it runs, as `Index.sources` names it."""
        return f"{self.system}, simulated" if self.is_simulated else self.system


class StudyEntry(Struct, frozen=True, forbid_unknown_fields=True):
    """Why a study has no result; a study is not a run of a system."""

    name: Text
    exhibit: Holder
    refusal: str = ""
    failure: str = ""


class Index(Struct, frozen=True, forbid_unknown_fields=True):
    """All entries of one scale; `sources` has each program's version in the last pass."""

    scale: Annotated[str, one_of(SCALES)]
    entries: tuple[Entry, ...] = ()
    studies: tuple[StudyEntry, ...] = ()
    sources: Mapping[str, str] = msgspec.field(default_factory=dict)
    schema_version: Literal[1] = 1


def write_index(folder: Path, index: Index) -> None:
    """Write `index.json`, whole or not at all; a ResourceError if the disk is full."""
    body = msgspec.to_builtins(index)
    path = folder / INDEX_FILE
    with map_errors({OSError: ResourceError}, f"cannot write {path}"):
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(path, (json.dumps(body, indent=1) + "\n").encode())


def read_index(folder: Path) -> Index:
    """Read `index.json`; a RecordError says what is missing or does not fit."""
    path = folder / INDEX_FILE
    where = f"index {path}"
    if not path.exists():
        scale = folder.name if folder.name in SCALES else "..."
        raise RecordError(
            f"index {path}: nothing was run at this scale yet: make paper SCALE={scale}"
        )
    data = read_small_file(path, _MAX_BYTES, RecordError, follow=True)
    return decode(data, Index, where, RecordError)
