"""One harness at a time on a host, because two would disturb each other's timings.

Two files in a folder that all users share. On `tpi-lab.lock` a harness holds a lock, exclusive
unless it may run beside others; on `tpi-lab.present` every harness holds a shared one and leaves a
byte when it comes. So each sees who is there (`/proc/locks`) and that one has come. The kernel
frees both locks however their holder ends. The contents of the files are never trusted.
"""

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from testbed.base import DeviceError

_FOLDERS = (Path("/run/lock"), Path("/tmp"))
_LOCK, _PRESENT = "tpi-lab.lock", "tpi-lab.present"
_LOCKS = Path("/proc/locks")


class Contention:
    """What one harness sees of others on its host."""

    def __init__(self, present_fd: int) -> None:
        self._fd = present_fd
        self._arrivals = _size(present_fd)
        self._others = False
        self._others = self._are_there(has_come=False)

    def seen(self) -> bool:
        """Whether another harness was there since the last call, or since the start."""
        arrivals = _size(self._fd)
        had_been = self._others or arrivals > self._arrivals
        self._others = self._are_there(has_come=arrivals > self._arrivals)
        self._arrivals = arrivals
        return had_been or self._others

    def _are_there(self, *, has_come: bool) -> bool:
        holders = _holders(self._fd)
        if os.getpid() in holders:
            return len(holders) > 1
        # Some file systems show other numbers there: then one that came counts as staying.
        return self._others or has_come


@contextlib.contextmanager
def host_lock(*, allow_concurrent: bool, folder: Path | None = None) -> Iterator[Contention]:
    """Be the only harness on this host while the body runs, or one of several and know of it.

    With `allow_concurrent` it runs beside others, which see it even if they do not allow it
    themselves. Without it, another harness is a DeviceError.
    """
    folder = folder or _shared_folder()
    with contextlib.ExitStack() as stack:
        lock = _opened(stack, folder / _LOCK, os.O_RDONLY, 0o644)
        present = _opened(stack, folder / _PRESENT, os.O_RDWR | os.O_APPEND, 0o666)
        if not _try_lock(lock, fcntl.LOCK_EX):
            if not allow_concurrent:
                raise DeviceError(_refusal(folder, lock, present))
        elif allow_concurrent:
            _try_lock(lock, fcntl.LOCK_SH)
        _try_lock(present, fcntl.LOCK_SH)
        os.write(present, b".")
        yield Contention(present)


def _shared_folder() -> Path:
    """The first folder in which every user may make files, so that all choose the same."""
    for folder in _FOLDERS:
        with contextlib.suppress(OSError):
            if folder.stat().st_mode & 0o1777 == 0o1777:
                return folder
    names = " or ".join(map(str, _FOLDERS))
    raise DeviceError(f"host lock: no folder for all users, expected {names} with mode 1777")


def _opened(stack: contextlib.ExitStack, path: Path, flags: int, mode: int) -> int:
    """A descriptor of a plain file that perhaps another user has made.

    In a folder of all users a name may be a trap: a link to a file of the victim, a FIFO.
    """
    flags |= os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        fd = _open_or_make(path, flags, mode)
    except OSError as exc:
        raise DeviceError(f"host lock {path}: cannot be opened: {exc.strerror}") from exc
    stack.callback(os.close, fd)
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        raise DeviceError(f"host lock {path}: expected a plain file of one name; remove it")
    return fd


def _open_or_make(path: Path, flags: int, mode: int) -> int:
    for _ in range(2):
        # First without O_CREAT: with it the kernel refuses other users' files in such folders.
        with contextlib.suppress(FileNotFoundError):
            return os.open(path, flags)
        with contextlib.suppress(FileExistsError):
            fd = os.open(path, flags | os.O_CREAT | os.O_EXCL, mode)
            os.fchmod(fd, mode)  # whatever our umask
            return fd
    return os.open(path, flags)


def _try_lock(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _refusal(folder: Path, lock: int, present: int) -> str:
    pids = sorted({*_holders(lock), *_holders(present)} - {os.getpid()})
    who = f" (process {', '.join(map(str, pids))})" if pids else ""
    return (
        f"another harness runs on this host{who} and holds {folder / _LOCK}: wait for its end, or"
        " give allow_concurrent=true, which marks both runs contended"
    )


def _holders(fd: int) -> list[int]:
    """Processes that hold a lock on this file, one entry per lock."""
    inode = str(os.fstat(fd).st_ino)
    found = []
    with contextlib.suppress(OSError):
        for line in _LOCKS.read_text(encoding="ascii").splitlines():
            # 1: FLOCK  ADVISORY  WRITE 708 08:01:12345 0 EOF; one that waits has "->" second.
            words = line.split()
            if words[1] == "FLOCK" and words[5].rpartition(":")[2] == inode:
                found.append(int(words[4]))
    return found


def _size(fd: int) -> int:
    return os.fstat(fd).st_size
