"""Small files that others may have written: opened, read and parsed so that none can harm.

`open_regular` refuses what is not a regular file without ever blocking (a FIFO, a device),
`read_small_file` bounds what is read, `parse_json` accepts strict JSON only, and `write_atomic`
leaves either the old file or the whole new one. The caller says which error a failure is.
"""

import contextlib
import json
import math
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from tpi.errors import ConfigError, TpiError

ErrorType = type[TpiError]


class ClosedAtExit:
    """A context manager that closes itself; for what has a `close` that may be called twice."""

    def close(self) -> None:
        """Give back what is held; twice is fine."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def open_regular(path: Path, error: ErrorType, *, follow: bool = False) -> int:
    """Open a regular file for reading and return its descriptor, which the caller closes.

    With `follow` the last part of the path may be a symbolic link (a Hugging Face cache is made of
    them); its target must still be a regular file.

    Raises:
        error: The file is missing, unreadable, or not a regular file. Never blocks on a FIFO.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
    flags |= 0 if follow else os.O_NOFOLLOW
    try:
        # Look before opening: to open a device or a FIFO can have effects of its own.
        kind = (os.stat if follow else os.lstat)(path).st_mode
        if not stat.S_ISREG(kind):
            raise error(f"{path}: expected a regular file, got {_kind(kind)}")
        fd = os.open(path, flags)
    except (OSError, ValueError) as exc:
        raise error(f"{path}: cannot be opened: {getattr(exc, 'strerror', None) or exc}") from exc
    kind = os.fstat(fd).st_mode
    if not stat.S_ISREG(kind):
        os.close(fd)
        raise error(f"{path}: expected a regular file, got {_kind(kind)}")
    return fd


def _kind(mode: int) -> str:
    names = {
        stat.S_IFLNK: "a symbolic link", stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO",
        stat.S_IFSOCK: "a socket", stat.S_IFBLK: "a device", stat.S_IFCHR: "a device",
    }  # fmt: skip
    return names.get(stat.S_IFMT(mode), "something else")


def read_full(fd: int, into: memoryview, offset: int) -> int:
    """Fill `into` from `offset` on as far as the file goes; returns the number of bytes read."""
    count = 0
    while count < len(into) and (more := os.preadv(fd, [into[count:]], offset + count)):
        count += more
    return count


def read_small_file(path: Path, max_bytes: int, error: ErrorType, *, follow: bool = False) -> bytes:
    """Read a whole regular file of at most `max_bytes`.

    Raises:
        error: As `open_regular`, or the file is larger than `max_bytes` or cannot be read.
    """
    fd = open_regular(path, error, follow=follow)
    try:
        with os.fdopen(fd, "rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as exc:
        raise error(f"{path}: cannot be read: {exc.strerror}") from exc
    if len(data) > max_bytes:
        raise error(f"{path}: expected at most {max_bytes} bytes, got more")
    return data


def parse_json(data: bytes, where: str, error: ErrorType) -> object:
    """Parse strict JSON: UTF-8, no duplicate keys, finite numbers, bounded nesting.

    Raises:
        error: The bytes are anything else; the message starts with `where`.
    """

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) != len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise error(f"{where}: the JSON key {twice[:80]!r} appears twice in one object")
        return found

    def finite(text: str) -> float:
        value = float(text)
        if not math.isfinite(value):
            raise error(f"{where}: the JSON number {text[:80]} is not finite")
        return value

    try:
        text = data.decode("utf-8")
        value: object = json.loads(
            text, object_pairs_hook=unique, parse_float=finite, parse_constant=finite
        )
        if "\\ud" in text.lower():  # half a surrogate pair is no text and cannot be printed
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as exc:
        raise error(f"{where}: not UTF-8 at byte {exc.start}") from exc
    except RecursionError as exc:
        raise error(f"{where}: JSON is nested too deeply") from exc
    except ValueError as exc:  # JSONDecodeError, and integers of thousands of digits
        raise error(f"{where}: not JSON: {str(exc)[:120]}") from exc
    return value


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that its name holds, after any crash, the old bytes or all the new ones.

    Raises:
        OSError: The folder cannot be written or the disk is full; no temporary file stays.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def check_out(path: Path, keep: Sequence[Path] = ()) -> None:
    """Refuse an `--out` that may not be replaced: `write_atomic` would remove a device or a link.

    Raises:
        ConfigError: It is no file's name, one of `keep` (files that are read), or not regular.
    """
    if not path.name:
        raise ConfigError(f"--out {path}: expected a file, got a folder; name the file in it")
    try:
        mode = path.lstat().st_mode
    except (OSError, ValueError):
        return  # nothing is there, or writing says what is wrong
    if not stat.S_ISREG(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "no regular file"
        raise ConfigError(f"--out {path}: is {what}; expected a new or a regular file")
    if any(each.exists() and path.samefile(each) for each in keep):
        raise ConfigError(f"--out {path}: is read for it; name another file")
