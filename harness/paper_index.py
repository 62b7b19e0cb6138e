"""The index of one scale while its runs come in: what each entry's run is, or why there is none.

It starts from what the last pass left, so that running one table keeps what stands behind the
others, and is written whole after every change. Entries that `conf/paper` no longer has fall out.
"""

import contextlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from results.index import Entry, Index, read_index, write_index
from results.schema import RecordError
from tpi.errors import ConfigError


class PaperIndex:
    """`index.json` in a folder, for the entries of a plan."""

    def __init__(self, folder: Path, scale: str, entries: Iterable[Entry]) -> None:
        self._folder, self._scale = folder, scale
        self._entries = {_key(entry): entry for entry in entries}
        with contextlib.suppress(RecordError):  # none yet, or a broken one, which is made anew
            old = read_index(folder)
            if old.scale != scale:
                raise ConfigError(
                    f"--dir: {folder} holds the scale {old.scale}, not {scale}; give another folder"
                )
            self._entries |= {_key(e): e for e in old.entries if _key(e) in self._entries}

    @property
    def index(self) -> Index:
        """As it will be written."""
        return Index(self._scale, tuple(self._entries.values()))

    def note(self, entries: Iterable[Entry], *, run_id: str, refusal: str) -> None:
        """Say what stands behind some entries."""
        for entry in entries:
            one_line = " ".join(refusal.split())
            self._entries[_key(entry)] = replace(entry, run_id=run_id, refusal=one_line)

    def write(self) -> None:
        """Write it, whole or not at all."""
        write_index(self._folder, self.index)


def _key(entry: Entry) -> Entry:
    return replace(entry, run_id="", refusal="")
