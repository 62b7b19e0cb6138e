"""Reading block files past the page cache.

`DirectFile` reads one open file with O_DIRECT `preadv` into page-aligned memory; where the file
system refuses O_DIRECT it reads through the page cache and says so in `note`. `FileReader` has a
`DirectFile` per block, all opened at the start, so that between two blocks there is nothing but the
next request. `read_rate_bps` measures the disk itself.
"""

import errno
import fcntl
import os
import resource
import stat
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from tpi.errors import ResourceError, WeightsError, map_errors
from tpi.files import ClosedAtExit
from tpi.weights.arena import Arena
from tpi.weights.layout import PAGE_BYTES

if TYPE_CHECKING:
    from tpi.weights.blockfile import BlockEntry

# One thread, one request in flight, median of 5 interleaved reads of 1 GiB, GB/s: 1 MiB 2.14,
# 4 MiB 2.13, 16 MiB 2.25, 64 MiB 2.35; two threads of 16 MiB 2.23. Larger requests give little
# more and would make `close` wait longer.
REQUEST_BYTES = 16 << 20
# File descriptors left for sockets, libraries and standard streams.
_OTHER_FILES = 256
_O_DIRECT: int = getattr(os, "O_DIRECT", 0)


class BlockReader(Protocol):
    """Brings a block's file into memory: files on disk, or a test's stand-in."""

    notes: tuple[str, ...]

    @property
    def bytes_read(self) -> int:
        """Bytes read so far; it grows with every request."""

    def read(self, entry: "BlockEntry", into: memoryview) -> None:
        """Fill `into` with the whole file of `entry`."""

    def close(self) -> None:
        """Close what was opened; twice is fine."""


class DirectFile(ClosedAtExit):
    """One regular file, open for aligned reads; `note` says why reads use the page cache, if so."""

    def __init__(self, path: Path, request_bytes: int = REQUEST_BYTES) -> None:
        self.path = path
        self._request_bytes = request_bytes
        self.note: str | None = None
        self.bytes_read = 0
        with map_errors({OSError: WeightsError}, f"cannot open {path}"):
            self._fd = self._open()
        status = os.fstat(self._fd)
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise WeightsError(f"{path}: not a regular file")
        self.num_bytes = status.st_size
        self._identity = _identity(status)

    def _open(self) -> int:
        # O_NONBLOCK: a FIFO in place of a file must be refused, not waited for.
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        if _O_DIRECT:
            try:
                return os.open(self.path, flags | _O_DIRECT)
            except OSError as exc:
                if exc.errno != errno.EINVAL:
                    raise
        self._note_refusal()
        return os.open(self.path, flags)

    def _note_refusal(self) -> None:
        self.note = (
            f"O_DIRECT refused by the file system of {self.path.parent}: "
            "reads go through the page cache"
        )

    @property
    def direct_io(self) -> bool:
        """Whether reads bypass the page cache."""
        return self.note is None

    def check_unchanged(self) -> None:
        """Refuse a file that was deleted, replaced, truncated or written since it was opened.

        Raises:
            WeightsError: naming the file and what happened to it.
        """
        with map_errors({OSError: WeightsError}, "shard file gone while in use"):
            now = _identity(self.path.stat(follow_symlinks=False))
        if now == self._identity:
            return
        if now[:2] != self._identity[:2]:
            raise WeightsError(f"{self.path}: replaced by another file while in use")
        if now[2] != self._identity[2]:
            raise WeightsError(
                f"{self.path}: {now[2]} bytes, had {self._identity[2]} when it was opened"
            )
        raise WeightsError(f"{self.path}: written to while in use")

    def read_into(self, into: memoryview, offset: int = 0) -> None:
        """Fill `into` from byte `offset` on, in requests of at most `request_bytes`.

        Raises:
            WeightsError: the file ends early, or the disk reports an error.
        """
        done = 0
        while done < len(into):
            wanted = into[done : done + self._request_bytes]
            with map_errors({OSError: WeightsError}, f"cannot read {self.path}"):
                got = self._read_once(wanted, offset + done)
            done += got
            self.bytes_read += got
            # O_DIRECT cannot go on at an odd place; only the end of the file leaves one.
            if got == 0 or (got < len(wanted) and done % PAGE_BYTES):
                raise WeightsError(
                    f"{self.path}: truncated: ends at byte {offset + done}, "
                    f"expected {offset + len(into)}"
                )

    def _read_once(self, into: memoryview, offset: int) -> int:
        try:
            return os.preadv(self._fd, [into], offset)
        except OSError as exc:
            if exc.errno != errno.EINVAL or not self.direct_io:
                raise
        # Some file systems accept O_DIRECT at open and refuse the read.
        flags = fcntl.fcntl(self._fd, fcntl.F_GETFL)
        fcntl.fcntl(self._fd, fcntl.F_SETFL, flags & ~_O_DIRECT)
        self._note_refusal()
        return os.preadv(self._fd, [into], offset)

    def close(self) -> None:
        """Close the file; twice is fine."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _identity(status: os.stat_result) -> tuple[int, int, int, int]:
    # Not the change time: a hard link more or less does not change the weights.
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def open_block(entry: "BlockEntry") -> DirectFile:
    """Open a block's file; a WeightsError if it is not as long as its manifest says."""
    file = DirectFile(entry.path)
    if file.num_bytes != entry.num_bytes:
        file.close()
        raise WeightsError(
            f"{entry.path}: {file.num_bytes} bytes, the manifest says {entry.num_bytes}"
        )
    return file


class FileReader:
    """Reads blocks from their files, all opened at the start and kept open.

    Raises:
        WeightsError: a file is missing, no regular file, or not as long as its manifest says.
        ResourceError: more files than the process may open.
    """

    def __init__(self, entries: Sequence["BlockEntry"]) -> None:
        _allow_open_files(len(entries) + _OTHER_FILES)
        self._files: dict[Path, DirectFile] = {}
        try:
            for entry in entries:
                self._files[entry.path] = open_block(entry)
        except WeightsError:
            self.close()
            raise

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know about how files are read; each note once."""
        notes = (file.note for file in self._files.values() if file.note is not None)
        return tuple(dict.fromkeys(notes))

    @property
    def bytes_read(self) -> int:
        """Bytes read so far; it grows with every request."""
        return sum(file.bytes_read for file in self._files.values())

    def read(self, entry: "BlockEntry", into: memoryview) -> None:
        """Fill `into` with the file of `entry`; refuse it if it is not the file it was."""
        file = self._files[entry.path]
        file.check_unchanged()
        file.read_into(into)

    def close(self) -> None:
        """Close all files; twice is fine."""
        for file in self._files.values():
            file.close()


def _allow_open_files(count: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= count:
        return
    if hard != resource.RLIM_INFINITY and hard < count:
        raise ResourceError(
            f"{count} files would be open at once, the limit is {hard}: raise `ulimit -Hn`"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


def read_rate_bps(
    paths: Iterable[Path], request_bytes: int = REQUEST_BYTES, span_bytes: int = 0
) -> float:
    """Return the rate of reading the files once, whole pages only, in bytes per second.

    One thread, one request in flight, O_DIRECT where the file system has it: what a loader that
    never idles would reach. `span_bytes` of memory (one request by default) are read into over and
    over. It should be as large as the window: memory that fits the processor's cache is filled
    faster (on a virtual disk 3.1 GB/s into 4 MiB and 2.3 into 256).
    """
    span_bytes = max(span_bytes // request_bytes, 1) * request_bytes
    files = [DirectFile(path, request_bytes) for path in paths]
    arena = Arena(span_bytes)
    try:
        arena.view(0, span_bytes)[:] = bytes(span_bytes)
        num_bytes = place = 0
        start_ns = time.monotonic_ns()
        for file in files:
            end = file.num_bytes // PAGE_BYTES * PAGE_BYTES
            for offset in range(0, end, request_bytes):
                length = min(request_bytes, end - offset)
                file.read_into(arena.view(place, length), offset)
                place = (place + request_bytes) % span_bytes
                num_bytes += length
        return num_bytes / max(time.monotonic_ns() - start_ns, 1) * 1e9
    finally:
        arena.close()
        for file in files:
            file.close()
