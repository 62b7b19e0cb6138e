"""What makes two runs the same run: a hash of everything that decides the numbers.

The caller collects it (system and options, model, weights, workload, dtype, devices, links,
dilation, backend, host fingerprint, dependency versions) and adds `content_digest` of the source
that runs; what only decides how often or where to is left out.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

# Program text and what programs read at run time; caches, objects and documents change nothing.
_SOURCE_SUFFIXES = {".py", ".json", ".yaml", ".c", ".h", ".sh"}
_NAME = re.compile(r"(?P<base>.+-[0-9a-f]{16})(?:-(?P<attempt>\d{1,9}))?")


def make_run_id(system: str, decisive: Mapping[str, object]) -> str:
    """`SYSTEM-` and 16 hexadecimal digits that change with any value in `decisive`."""
    return f"{system}-{digest_of(decisive)[:16]}"


def digest_of(values: Mapping[str, object]) -> str:
    """SHA-256 over plain values, whatever the order of their names."""
    canonical = json.dumps(values, sort_keys=True, allow_nan=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def split_run_id(run_id: str) -> tuple[str, int] | None:
    """(`base`, attempt) of a folder's name: `x-<hash>` is attempt 1, `x-<hash>-2` attempt 2."""
    match = _NAME.fullmatch(run_id)
    if match is None:
        return None
    return match["base"], int(match["attempt"] or 1)


def content_digest(paths: Sequence[Path], without: Sequence[Path] = ()) -> str:
    """SHA-256 over names and bytes of source files: of a file, or of a folder with all below.

    Args:
        paths: Files and folders.
        without: Files and folders below those that have no part in what is digested.
    """
    total = hashlib.sha256()
    for path in paths:
        files = [path] if path.is_file() else _source_files(path)
        for file in files:
            if any(file.is_relative_to(each) for each in without):
                continue
            name = file.relative_to(path.parent).as_posix()
            data = hashlib.sha256(file.read_bytes()).hexdigest()
            total.update(f"{name}\0{data}\n".encode())
    return total.hexdigest()


def _source_files(folder: Path) -> list[Path]:
    found = (p for p in folder.rglob("*") if p.suffix in _SOURCE_SUFFIXES and p.is_file())
    return sorted(p for p in found if "__pycache__" not in p.parts)
