"""Large files written once: hashed while written, at the disk's rate, with no half-made name.

A `NewFile` grows under a temporary name and gets its own when it is complete and durable. A
`WriteQueue` owns two threads, one that hashes and one that writes, so that the caller makes the
next bytes meanwhile; what waits in it is bounded.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from tpi.errors import ConfigError, ResourceError, TpiError, WeightsError

TEMPORARY_SUFFIX = ".partial"
# Written pages are handed to the disk this often. Measured on ext4 over a virtual disk, 1 GiB
# files: 2.3 GB/s so, 2.0 GB/s with O_DIRECT, 0.3 GB/s when the page cache fills and stalls.
_FLUSH_BYTES = 16 << 20
_MAX_PENDING_BYTES = 48 << 20

Progress = Callable[[int, int], None]


class NewFile:
    """One file in the making; `append` and `finish` go through a `WriteQueue`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.num_bytes = 0
        self.temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
        self.sha = hashlib.sha256()
        self._written = 0
        self._flushed = 0
        self._failure: TpiError | None = None
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            self._fd: int | None = os.open(self.temporary, flags, 0o644)
        except OSError as exc:
            raise write_error(self.temporary, exc) from exc

    @property
    def is_closed(self) -> bool:
        """Whether the file is complete or given up."""
        return self._fd is None

    def write(self, data: memoryview) -> None:
        """Write bytes at the end, and keep the page cache from filling."""
        if self._fd is None or self._failure is not None:
            return
        try:
            while data:
                count = os.write(self._fd, data)
                self._written += count
                data = data[count:]
            if self._written - self._flushed >= _FLUSH_BYTES:
                # On dirty pages DONTNEED starts writing them, on clean ones it drops them.
                os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)
                self._flushed = self._written
        except OSError as exc:
            self._failure = write_error(self.temporary, exc)
            raise self._failure from exc

    def complete(self, hashed: "Future[None] | None") -> str:
        """Make the bytes durable and give the file its name; return its SHA-256."""
        if self._fd is None:
            raise WeightsError(f"{self.path}: was given up before it was complete")
        if self._failure is not None:
            raise self._failure
        if hashed is not None:
            hashed.result()
        try:
            os.fsync(self._fd)
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)
            self._close()
            self.temporary.replace(self.path)
        except OSError as exc:
            raise write_error(self.path, exc) from exc
        return self.sha.hexdigest()

    def abandon(self) -> None:
        """Remove what is under the temporary name; harmless once complete."""
        if self._fd is not None:
            self._close()
            with contextlib.suppress(OSError):
                self.temporary.unlink(missing_ok=True)

    def _close(self) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)


class WriteQueue:
    """Hashes and writes in the background, each file's bytes in the order of `append`.

    `progress` gets (bytes done, bytes in all) after every `append`, counted on from `done`.
    """

    def __init__(self, progress: Progress | None = None, done: int = 0, total: int = 0) -> None:
        self._progress, self._done, self._total = progress, done, total
        self._hasher = ThreadPoolExecutor(1, "split-hash")
        self._writer = ThreadPoolExecutor(1, "split-write")
        self._pending: deque[tuple[int, tuple[Future[None], Future[None]]]] = deque()
        self._pending_bytes = 0
        self._last_hash: dict[NewFile, Future[None]] = {}
        self._files: list[NewFile] = []

    def create(self, path: Path) -> NewFile:
        """Begin a file; after an error nothing of it stays."""
        self._files = [file for file in self._files if not file.is_closed]
        self._files.append(NewFile(path))
        return self._files[-1]

    def append(self, file: NewFile, data: memoryview) -> None:
        """Add bytes to a file; they must not change afterwards.

        Blocks while 48 MiB wait. An error of an earlier write is raised here.
        """
        while self._pending and self._pending_bytes + len(data) > _MAX_PENDING_BYTES:
            self._retire()
        hashed = self._hasher.submit(file.sha.update, data)
        written = self._writer.submit(file.write, data)
        file.num_bytes += len(data)
        self._last_hash[file] = hashed
        self._pending.append((len(data), (hashed, written)))
        self._pending_bytes += len(data)
        self._done += len(data)
        if self._progress is not None:
            self._progress(self._done, self._total)

    def pad(self, file: NewFile, offset: int) -> None:
        """Fill a file with zeros up to `offset`."""
        if offset > file.num_bytes:
            self.append(file, memoryview(bytes(offset - file.num_bytes)))

    def finish(self, file: NewFile) -> "Future[str]":
        """Complete a file after all that was appended; the result is its SHA-256."""
        return self._writer.submit(file.complete, self._last_hash.pop(file, None))

    def _retire(self) -> None:
        num_bytes, futures = self._pending.popleft()
        self._pending_bytes -= num_bytes
        for future in futures:
            future.result()

    def __enter__(self) -> "WriteQueue":
        return self

    def __exit__(self, kind: object, exc: BaseException | None, traceback: object) -> None:
        """Stop both threads; after an error drop what still waits and remove unfinished files."""
        for pool in (self._hasher, self._writer):
            pool.shutdown(wait=True, cancel_futures=exc is not None)
        for file in self._files:
            file.abandon()


def write_error(path: Path, exc: OSError) -> TpiError:
    """The error of ours for a failed write."""
    if exc.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return ResourceError(
            f"{path}: {exc.strerror}; free space or choose another folder, then run it again"
        )
    if exc.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR):
        return ConfigError(f"{path}: cannot be written: {exc.strerror}; choose another folder")
    return WeightsError(f"{path}: cannot be written: {exc.strerror or exc}")


def free_bytes(path: Path) -> int:
    """Bytes that a user may still write to the file system of `path` (or its nearest parent)."""
    while not path.exists() and path != path.parent:
        path = path.parent
    stat = os.statvfs(path)
    return stat.f_bavail * stat.f_frsize


def require_free_bytes(path: Path, num_bytes: int) -> None:
    """Refuse to start what cannot end.

    Raises:
        ResourceError: The file system of `path` has less than `num_bytes` free.
    """
    free = free_bytes(path)
    if num_bytes > free:
        raise ResourceError(
            f"{path}: needs {num_bytes / 1e9:.2f} GB of disk, has {free / 1e9:.2f} GB free"
            "; free space or choose another folder"
        )


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Make a folder and hold it: two writers would mix their files.

    Raises:
        ConfigError: It cannot be made or written, or another process holds it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as exc:
        raise ConfigError(f"{folder}: cannot be the output folder: {exc.strerror}") from exc
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise ConfigError(
                f"{folder}: another process is writing to it; wait for its end"
            ) from exc
        yield
    finally:
        os.close(fd)
