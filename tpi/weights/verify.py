"""Hash block files once: a stamp beside the folder remembers which files were found good.

The stamp is inode, size, mtime and ctime of every file; where one differs, that file is hashed
again. It lies beside the folder (`<folder>.verified.json`), because a shard folder is read-only in
use; if it cannot be written there, the folder is hashed every time. A process that can write beside
the folder can forge it: it guards against damage and mix-ups only.
"""

import hashlib
import json
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from msgspec import Struct, to_builtins

from tpi.decode import decode_file
from tpi.errors import WeightsError
from tpi.files import open_regular, read_full, write_atomic

if TYPE_CHECKING:
    from tpi.weights.blockfile import BlockEntry

log = logging.getLogger(__name__)

STAMP_SUFFIX = ".verified.json"
_MAX_STAMP_BYTES = 4 << 20
_CHUNK_BYTES = 1 << 20  # stays in the second-level cache between hash and NaN check
_DROP_BYTES = 16 << 20
# File times advance in ticks of up to 10 ms (Linux, CONFIG_HZ=100): a file altered within the
# tick of its last change has the same stamp, so a file as young as that is never remembered.
YOUNG_NS = 50_000_000
# All exponent bits set: infinity or NaN.
_EXPONENT = {
    "float32": ("<u4", 0x7F800000),
    "float16": ("<u2", 0x7C00),
    "bfloat16": ("<u2", 0x7F80),
}

Stamp = tuple[int, int, int, int]


class _StampFile(Struct, frozen=True, forbid_unknown_fields=True):
    """The stamp: which files were found good, under which manifest."""

    schema_version: Literal[1]
    manifest_sha256: str
    files: dict[str, Stamp]


def stamp_path(folder: Path) -> Path:
    """Where the stamp of a shard folder lies."""
    real = folder.resolve()
    return real.with_name(real.name + STAMP_SUFFIX)


def verify_once(folder: Path, entries: Sequence["BlockEntry"], dtype: str, manifest: bytes) -> int:
    """Hash the files that are not known to be good; files that are one inode are hashed once.

    `entries` may be some of the folder's blocks: what is known about the others stays known. Other
    bytes of `manifest` void the whole stamp. Returns the number of bytes that were hashed.

    Raises:
        WeightsError: A file does not have the manifest's hash, holds NaN or infinity, or cannot be
            read.
    """
    digest = hashlib.sha256(manifest).hexdigest()
    known = _read_stamp(stamp_path(folder), digest)
    hashed: dict[tuple[int, int], str] = {}
    stamps: dict[str, Stamp] = {}
    num_bytes = 0
    oldest_young = time.time_ns() - YOUNG_NS
    for entry in entries:
        fd = open_regular(entry.path, WeightsError)
        try:
            info = os.fstat(fd)
            stamp = (info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)
            if known.get(entry.id.file_name) != stamp:
                inode = (info.st_dev, info.st_ino)
                if inode not in hashed:
                    hashed[inode] = _hash_file(fd, entry, dtype)
                    num_bytes += info.st_size
                if hashed[inode] != entry.sha256:
                    raise WeightsError(
                        f"{entry.path}: altered: expected SHA-256 {entry.sha256}, "
                        f"got {hashed[inode]}; split the model again or copy the folder again"
                    )
        finally:
            os.close(fd)
        if max(stamp[2], stamp[3]) < oldest_young:
            stamps[entry.id.file_name] = stamp
    if num_bytes:
        names = {entry.id.file_name for entry in entries}
        others = _read_stamp(stamp_path(folder), digest)  # again: several may hash one folder
        stamps |= {name: stamp for name, stamp in others.items() if name not in names}
        _write_stamp(stamp_path(folder), digest, stamps)
    return num_bytes


def _hash_file(fd: int, entry: "BlockEntry", dtype: str) -> str:
    """SHA-256 of an open block file, and a look for NaN on the way (20 times as fast)."""
    import numpy as np  # only here: planning and --help must not pay for it

    word, exponent = _EXPONENT[dtype]
    sha = hashlib.sha256()
    buffer = bytearray(_CHUNK_BYTES)
    view = memoryview(buffer)
    bits = np.frombuffer(buffer, word)
    masked = np.empty_like(bits)
    offset = 0
    data_offset = entry.places[0].offset  # before it is text, which is not to be taken for NaN
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        while count := read_full(fd, view, offset):
            sha.update(view[:count])
            data = slice(max(data_offset - offset, 0) // bits.itemsize, count // bits.itemsize)
            np.bitwise_and(bits[data], exponent, out=masked[data])
            if int(masked[data].max(initial=0)) == exponent:
                raise WeightsError(f"{entry.path}: holds NaN or infinity; use another checkpoint")
            offset += count
            if offset % _DROP_BYTES == 0:
                # Weights are streamed with O_DIRECT: their pages would only take memory.
                os.posix_fadvise(fd, 0, offset, os.POSIX_FADV_DONTNEED)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    except OSError as exc:
        raise WeightsError(f"{entry.path}: cannot be read at {offset}: {exc.strerror}") from exc
    return sha.hexdigest()


def _read_stamp(path: Path, digest: str) -> dict[str, Stamp]:
    """The files known to be good; empty where there is no stamp, or one that is not ours."""
    try:
        stamp = decode_file(path, _StampFile, _MAX_STAMP_BYTES, WeightsError)
    except WeightsError as exc:
        log.debug("no usable stamp: %s", exc)
        return {}
    return stamp.files if stamp.manifest_sha256 == digest else {}


def _write_stamp(path: Path, digest: str, stamps: dict[str, Stamp]) -> None:
    content = to_builtins(_StampFile(1, digest, stamps))
    try:
        write_atomic(path, json.dumps(content).encode())
    except OSError as exc:
        log.info("%s: not written (%s): the shards are hashed again next time", path, exc.strerror)
