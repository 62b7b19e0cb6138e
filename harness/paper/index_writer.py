"""The index of one scale while its runs come in: each entry's run, or why there is none.

It starts from the index of the last pass, so that running one table keeps the entries of the
others, and is written whole after every change. Entries that `conf/paper` no longer has are
dropped. Only the holder of `folder_lock` may write it.
"""

import contextlib
import fcntl
import functools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from msgspec.structs import replace

from harness.paper.plan import Study
from harness.run.run_key import digest_of_source
from results.paper.index import INDEX_FILE, Entry, Index, StudyEntry, read_index, write_index
from results.records.schema import RecordError
from testbed.base import DeviceError
from tpi.errors import ConfigError, ResourceError, map_errors

_LOCK = ".lock"
KEPT_FILE = f"{INDEX_FILE}.old"


class PaperIndex:
    """`index.json` in a folder, for the entries of a plan.

    Attributes:
        problem: Why the one that is there cannot be used; it is kept as `KEPT_FILE` and made anew.
    """

    def __init__(self, folder: Path, scale: str, entries: Iterable[Entry]) -> None:
        self._folder, self.scale = folder, scale
        self._entries = {_key(entry): entry for entry in entries}
        self._studies: dict[str, StudyEntry] = {}
        self.problem = ""
        self._is_ours = True
        if not (folder / INDEX_FILE).exists():
            if any(folder.glob("*/run.json")):
                self.problem = f"{folder / INDEX_FILE}: missing beside run records"
            return
        try:
            old = read_index(folder)
        except RecordError as exc:
            self.problem, self._is_ours = f"{exc}; keeping it as {KEPT_FILE}", False
            return
        if old.scale != scale:
            raise ConfigError(
                f"--dir: {folder} holds the scale {old.scale}, not {scale}; give another folder"
            )
        self._entries |= {_key(e): e for e in old.entries if _key(e) in self._entries}
        self._studies = {study.name: study for study in old.studies}

    @property
    def index(self) -> Index:
        """The index as it will be written."""
        sources = {entry.program: _source(entry) for entry in self._entries.values()}
        entries, studies = tuple(self._entries.values()), tuple(self._studies.values())
        return Index(self.scale, entries, studies, sources)

    def note(
        self, entries: Iterable[Entry], run_id: str = "", refusal: str = "", failure: str = ""
    ) -> None:
        """Set the record of some entries, or why there is none; all empty before a run."""
        for entry in entries:
            self._entries[_key(entry)] = replace(
                entry,
                run_id=run_id,
                refusal=_one_line(refusal),
                failure=_one_line(failure),
                source=_source(entry) if run_id else "",
            )

    def note_study(self, study: Study, refusal: str, failure: str) -> None:
        """Set why a study has no result; empty if it has one."""
        words = _one_line(refusal), _one_line(failure)
        self._studies[study.name] = StudyEntry(study.name, study.exhibit, *words)

    def write(self) -> None:
        """Write it, whole or not at all."""
        if not self._is_ours:
            path = self._folder / INDEX_FILE
            with map_errors({OSError: ResourceError}, f"cannot rename {path}"):
                path.replace(self._folder / KEPT_FILE)
            self._is_ours = True
        write_index(self._folder, self.index)


@contextlib.contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Be the only driver of a folder; the kernel frees the lock however we end.

    Raises:
        DeviceError: Another driver works there.
        ResourceError: The folder cannot be written.
    """
    path = folder / _LOCK
    with map_errors({OSError: ResourceError}, f"cannot write {path}"):
        folder.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    with os.fdopen(fd, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DeviceError(
                f"{folder}: another `make paper` works there; wait for its end, or give --dir"
            ) from None
        yield


def _key(entry: Entry) -> Entry:
    return replace(entry, run_id="", refusal="", failure="", source="")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _source(entry: Entry) -> str:
    return _digest(entry.system, entry.is_simulated)[:12]


@functools.cache  # every entry asks for it after every run
def _digest(system: str, is_simulated: bool) -> str:
    # The backend of containers imports that of local processes.
    return digest_of_source(system, "sim" if is_simulated else "docker")
