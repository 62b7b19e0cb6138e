"""What is finished of an output folder, so that writing can be interrupted: `journal.jsonl`.

     line 1   {"format": 1, "key": "<hash of source, plan and dtype>"}
     then     {"file": "rank-0/attn-000.safetensors", "sha256": "..."}   file is complete, durable
     last     {"complete": true}                                         manifests are written

A line that a crash cut short, and what follows it, counts as not written.
"""

import contextlib
import json
import re
from collections.abc import Mapping
from pathlib import Path

from tpi.errors import ConfigError
from tpi.files import parse_json, read_small_file, write_atomic

JOURNAL_FILE = "journal.jsonl"
_FORMAT = 1
_MAX_BYTES = 256 << 20
# All that a split may have left; nothing else in the folder is ever removed.
_OURS = re.compile(r"((embed|(attn|ffn|head)-\d+)\.safetensors(\.partial)?|manifest\.json)")


class Journal:
    """The journal of one output folder, opened for one split.

    Args:
        out: The folder; must exist and be locked by the caller.
        key: What decides every byte of the output.
        force: Remove shards of another key.

    Raises:
        ConfigError: The folder holds shards of another key.
    """

    def __init__(self, out: Path, key: str, *, force: bool) -> None:
        self.sha256: dict[str, str] = {}
        self.complete = False
        self._out = out
        self._path = out / JOURNAL_FILE
        head: dict[str, object] = {"format": _FORMAT, "key": key}
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
        kept = [{"file": name, "sha256": sha} for name, sha in self.sha256.items()]
        end = [{"complete": True}] if self.complete else []
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
        self._append(*({"file": name, "sha256": sha} for name, sha in sha256.items()))
        self.sha256 |= sha256

    def finish(self) -> None:
        """Note that all manifests are written."""
        self._append({"complete": True})

    def remove_manifests(self) -> None:
        """Make every rank folder look unfinished, which it is about to be."""
        for path in self._out.glob("rank-*/manifest.json"):
            path.unlink(missing_ok=True)

    def _append(self, *lines: Mapping[str, object]) -> None:
        with self._path.open("ab") as file:
            file.write(_to_bytes(*lines))

    def _take(self, lines: list[object]) -> None:
        for line in lines:
            if isinstance(line, dict) and "file" in line:
                self.sha256[str(line["file"])] = str(line.get("sha256"))
            elif isinstance(line, dict):
                self.complete = bool(line.get("complete"))

    def _read(self) -> list[object]:
        if not self._path.exists():
            return []
        lines: list[object] = []
        data = read_small_file(self._path, _MAX_BYTES, ConfigError)
        for line in data.splitlines(keepends=True):
            try:
                lines.append(parse_json(line, str(self._path), ConfigError))
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


def _to_bytes(*lines: Mapping[str, object]) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)
