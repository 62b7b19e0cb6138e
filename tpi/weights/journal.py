"""What is finished of an output folder, so that writing can be interrupted: `journal.jsonl`.

     line 1   {"format": 1, "key": "<hash of source, plan and dtype>"}
     then     {"file": "rank-0/attn-000.safetensors", "sha256": "..."}   file is complete, durable
     last     {"complete": true}                                         manifests are written

A line that a crash cut short, and what follows it, counts as not written.
"""

import contextlib
import re
from collections.abc import Mapping
from pathlib import Path

import msgspec
from msgspec import Struct

from tpi.decode import decode
from tpi.errors import ConfigError
from tpi.files import read_small_file, write_atomic

JOURNAL_FILE = "journal.jsonl"
_MAX_BYTES = 256 << 20
# All that a split may have left; nothing else in the folder is ever removed.
_OURS = re.compile(r"((embed|(attn|ffn|head)-\d+)\.safetensors(\.partial)?|manifest\.json)")


class _Line(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A line: the head has `format` and `key`, a file's `file` and `sha256`, the last the rest."""

    format: int | None = None
    key: str | None = None
    file: str | None = None
    sha256: str | None = None
    complete: bool = False


class Journal:
    """The journal of one output folder, which exists and is locked, opened for one split.

    `key` decides every byte of the output; `force` removes shards of another key.

    Raises:
        ConfigError: The folder holds shards of another key.
    """

    def __init__(self, out: Path, key: str, *, force: bool) -> None:
        self.sha256: dict[str, str] = {}
        self.complete = False
        self._out = out
        self._path = out / JOURNAL_FILE
        head = _Line(format=1, key=key)
        lines = self._read()
        if lines[:1] == [head]:
            self._take(lines[1:])
        elif lines or any(out.glob("rank-*/manifest.json")):
            if not force:
                raise ConfigError(
                    f"{out}: holds weights of another model, plan or dtype"
                    "; use another --out, or --force to replace them"
                )
            self._clear()
        # Written anew, since a line that was cut short would swallow the next one.
        kept = [_Line(file=name, sha256=sha) for name, sha in self.sha256.items()]
        end = [_Line(complete=True)] if self.complete else []
        write_atomic(self._path, _to_bytes(head, *kept, *end))

    def holds(self, name: str, num_bytes: int) -> bool:
        """Whether a file was completed and is still there with its length."""
        if name not in self.sha256:
            return False
        with contextlib.suppress(OSError):
            return (self._out / name).stat().st_size == num_bytes
        return False

    def enter(self, sha256: Mapping[str, str]) -> None:
        """Note files whose bytes are durable.

        Lost lines or names only mean that a file is written again, so nothing waits for the disk.
        """
        self._append(*(_Line(file=name, sha256=sha) for name, sha in sha256.items()))
        self.sha256 |= sha256

    def finish(self) -> None:
        """Note that all manifests are written."""
        self._append(_Line(complete=True))

    def remove_manifests(self) -> None:
        """Make every rank folder look unfinished, which it is about to be."""
        for path in self._out.glob("rank-*/manifest.json"):
            path.unlink(missing_ok=True)

    def _append(self, *lines: _Line) -> None:
        with self._path.open("ab") as file:
            file.write(_to_bytes(*lines))

    def _take(self, lines: list[_Line]) -> None:
        for line in lines:
            if line.file is not None and line.sha256 is not None:
                self.sha256[line.file] = line.sha256
            self.complete = line.complete

    def _read(self) -> list[_Line]:
        if not self._path.exists():
            return []
        lines: list[_Line] = []
        data = read_small_file(self._path, _MAX_BYTES, ConfigError)
        for line in data.splitlines(keepends=True):
            try:
                lines.append(decode(line, _Line, str(self._path), ConfigError))
            except ConfigError:
                break
        return lines

    def _clear(self) -> None:
        self._path.unlink(missing_ok=True)
        self.remove_manifests()
        for folder in self._out.glob("rank-*"):
            if folder.is_symlink() or not folder.is_dir():
                continue
            for path in folder.iterdir():
                if _OURS.fullmatch(path.name):
                    path.unlink()
            with contextlib.suppress(OSError):  # somebody else's files are in it
                folder.rmdir()


def _to_bytes(*lines: _Line) -> bytes:
    return b"".join(msgspec.json.encode(line) + b"\n" for line in lines)
