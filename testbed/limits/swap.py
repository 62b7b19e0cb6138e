"""Swap for devices that have some: the host's own, or a file that is made for a run and removed.

A swap file stays when its maker is killed, so its name tells whose it is: a later run removes it if
that process is gone, and never anything else.
"""

import contextlib
import os
import re
import shlex
import shutil
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from testbed.base import DeviceError
from testbed.host.label import RunLabel, is_alive
from testbed.links.nettools import run_quietly, tool_environment
from tpi.errors import ConfigError, map_errors

_PREFIX = "tpi-lab-swap"
# Host, process, its start and run.
_NAME = re.compile(rf"{_PREFIX}-(\w+)-(\d+)-(\d+)-(\w+)\.swap", re.ASCII)
_UNSAFE = re.compile(r"\W", re.ASCII)
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
# The header is one page, and the kernel wants some to work with.
_SPARE_BYTES = 1 << 20
# What the run itself writes must find room beside it.
_LEAST_FREE_BYTES = 1 << 30
_CHUNK_BYTES = 4 << 20
_ON_S = 60.0
# Everything in it has to be read back.
_OFF_S = 600.0
_ROOT_UID = 0

Run = Callable[[Sequence[str], float], None]


@dataclass(frozen=True, slots=True)
class SwapArea:
    """One row of /proc/swaps."""

    path: str
    size_bytes: int
    used_bytes: int


@contextlib.contextmanager
def ensure_swap(
    need_bytes: int,
    folder: Path,
    label: RunLabel,
    *,
    may_make: bool = True,
    uid: int | None = None,
    root: Path = Path("/"),
    run: Run | None = None,
) -> Iterator[Path | None]:
    """Have swap free for all devices together while the body runs; gives the file made for it.

    Where the host's own does not suffice, a file is made in `folder` if `may_make`; its name has
    the `label`. `uid`, `root` (where `proc` and `sys` are) and `run` are for tests.

    Raises:
        ConfigError: There is too little swap, and none was to be or could be made; or this kernel
            cannot limit a device's swap.
        DeviceError: The file could not be made, or not be removed.
    """
    if need_bytes <= 0:
        yield None
        return
    reap_swap(folder, root=root, run=run)
    require_swap(need_bytes, folder, may_make=may_make, uid=uid, root=root)
    free = free_swap_bytes(root)
    if free >= need_bytes:
        yield None
        return
    size = -(-(need_bytes - free + _SPARE_BYTES) // _PAGE_BYTES) * _PAGE_BYTES
    path = folder.resolve() / swap_name(label)
    run = run or run_tool
    # Outside of the `try`: a file that another program made is not ours to remove.
    fd = _create(path, size)
    try:
        _swap_on(fd, path, size, run)
        yield path
    finally:
        _remove(path, root, run)


def _create(path: Path, size_bytes: int) -> int:
    """A new file that only its owner can read, open for writing."""
    with map_errors({OSError: DeviceError}, f"swap file {path}"):
        stat = os.statvfs(path.parent)
        free = stat.f_bavail * stat.f_frsize
        if free < size_bytes + _LEAST_FREE_BYTES:
            raise DeviceError(
                f"swap file {path}: {size_bytes} bytes needed and {_LEAST_FREE_BYTES} to spare,"
                f" {free} free; put weights.dir on a larger disk"
            )
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)


def _swap_on(fd: int, path: Path, size_bytes: int, run: Run) -> None:
    """Give a file its size and swap on it; closes it."""
    with os.fdopen(fd, "wb", buffering=0), map_errors({OSError: DeviceError}, f"swap file {path}"):
        try:
            os.posix_fallocate(fd, 0, size_bytes)
        except OSError:  # some file systems cannot reserve space
            _fill(fd, size_bytes)
        run(["mkswap", str(path)], _ON_S)
        try:
            run(["swapon", str(path)], _ON_S)
        except DeviceError:  # nor can some swap to what is only reserved
            _fill(fd, size_bytes)
            run(["mkswap", str(path)], _ON_S)
            run(["swapon", str(path)], _ON_S)


def _fill(fd: int, size_bytes: int) -> None:
    os.ftruncate(fd, 0)
    os.lseek(fd, 0, os.SEEK_SET)
    zeros = memoryview(bytes(_CHUNK_BYTES))
    while size_bytes:
        size_bytes -= os.write(fd, zeros[: min(size_bytes, _CHUNK_BYTES)])
    os.fsync(fd)


def _remove(path: Path, root: Path, run: Run) -> None:
    """Swap off, and remove the file. Nothing to do is fine."""
    if str(path) in [area.path for area in swap_areas(root)]:
        run(["swapoff", str(path)], _OFF_S)
    with map_errors({OSError: DeviceError}, f"swap file {path}"):
        path.unlink(missing_ok=True)


def run_tool(argv: Sequence[str], timeout_s: float) -> None:
    """Run a program to its end; a DeviceError if it is not there, fails, or does not end."""
    if shutil.which(argv[0], path=tool_environment()["PATH"]) is None:
        raise DeviceError(f"swap: {argv[0]}: not found; apt-get install util-linux mount")
    done = run_quietly(argv, "swap", timeout_s)
    if done.returncode != 0:
        words = (done.stderr or done.stdout).strip().splitlines() or ["it said nothing"]
        raise DeviceError(f"swap: {' '.join(argv)}: {words[-1]}")


def reap_swap(
    folder: Path,
    *,
    root: Path = Path("/"),
    alive: Callable[[RunLabel], bool] = is_alive,
    run: Run | None = None,
) -> list[str]:
    """Remove `leftover_swap`; gives a line for each."""
    lines = []
    for path in leftover_swap(folder, root=root, alive=alive):
        what = f"swap file {path}, left by an earlier run"
        try:
            _remove(path, root, run or run_tool)
        except DeviceError as exc:
            lines.append(f"{what}: could not be removed ({exc})")
        else:
            lines.append(f"{what}: removed")
    return lines


def leftover_swap(
    folder: Path, *, root: Path = Path("/"), alive: Callable[[RunLabel], bool] = is_alive
) -> list[Path]:
    """Swap files in a folder, and active ones anywhere, whose makers are gone."""
    found = {Path(area.path) for area in swap_areas(root)}
    with contextlib.suppress(OSError):
        found |= set(folder.resolve().iterdir())
    # A link of such a name is nothing that we made.
    ours = {path: owner_of(path) for path in found if not path.is_symlink()}
    return sorted(path for path, owner in ours.items() if owner is not None and not alive(owner))


def swap_name(label: RunLabel) -> str:
    """The name of a run's swap file: it says whose it is."""
    host, run_id = _UNSAFE.sub("_", label.host), _UNSAFE.sub("_", label.run_id)
    return f"{_PREFIX}-{host}-{label.pid}-{label.start_ticks}-{run_id}.swap"


def owner_of(path: Path) -> RunLabel | None:
    """Whose a swap file is, by its name; None if it is none of ours."""
    match = _NAME.fullmatch(path.name)
    if match is None:
        return None
    here = socket.gethostname()
    host = here if _UNSAFE.sub("_", here) == match[1] else match[1]
    return RunLabel(match[4], host, int(match[2]), int(match[3]))


def swap_areas(root: Path = Path("/")) -> list[SwapArea]:
    """All active swap of the host."""
    try:
        lines = (root / "proc/swaps").read_text(encoding="utf-8").splitlines()[1:]
    except OSError:  # a kernel without swap
        return []
    rows = [line.rsplit(None, 4) for line in lines]
    return [
        SwapArea(_unescaped(path), int(size) * 1024, int(used) * 1024)
        for path, _, size, used, _ in rows
    ]


def free_swap_bytes(root: Path = Path("/")) -> int:
    """Swap that is active and not in use."""
    return sum(area.size_bytes - area.used_bytes for area in swap_areas(root))


def accounting_problem(root: Path = Path("/")) -> str | None:
    """Why a container's swap cannot be limited; None if it can."""
    base = root / "sys/fs/cgroup"
    if (base / "memory").is_dir():
        # A kernel that does not account swap has no such file, in the root group either.
        if (base / "memory/memory.memsw.limit_in_bytes").exists():
            return None
        return (
            "this kernel does not account swap (no memory.memsw.limit_in_bytes, cgroup version 1);"
            " boot it with swapaccount=1, or set device.swap=0"
        )
    if not (root / "proc/swaps").exists():
        return "this kernel was built without swap; set device.swap=0"
    if _has_v2_swap(base):
        return None
    return (
        "this kernel does not account swap (no memory.swap.max, cgroup version 2);"
        " boot it with swapaccount=1, or set device.swap=0"
    )


def _has_v2_swap(base: Path) -> bool:
    """Only groups below the root have the file, and only those with the memory controller."""
    groups = list(base.glob("*/memory.max"))
    return not groups or any((path.parent / "memory.swap.max").exists() for path in groups)


def require_swap(
    need: int, folder: Path, *, may_make: bool, uid: int | None = None, root: Path = Path("/")
) -> None:
    """Refuse early what `ensure_swap` would refuse, with the same ConfigError."""
    if need <= 0:
        return
    if problem := accounting_problem(root):
        raise ConfigError(f"swap: {problem}")
    free = free_swap_bytes(root)
    uid = os.geteuid() if uid is None else uid
    if free >= need or (may_make and uid == _ROOT_UID):
        return
    mend = "say testbed.make_swap=true as root" if uid == _ROOT_UID else "run as root"
    size = -(-need // (1 << 20))
    file = shlex.quote(str(folder / "swapfile"))
    raise ConfigError(
        f"swap: the devices need {need} bytes, this host has {free} free; {mend}, or make some:"
        f" `fallocate -l {size}M {file} && chmod 600 {file} && mkswap {file} && swapon {file}`"
    )


def _unescaped(path: str) -> str:
    """A path of /proc: blanks, tabs, line ends and backslashes stand there as octal numbers."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), path)
