"""Reading files of control groups, whose forms both versions share; a missing one is one error."""

import contextlib
from pathlib import Path

from testbed.base import DeviceError
from testbed.host.procfs import number_after, read_small


def read(path: Path) -> str:
    """What a file says.

    Raises:
        DeviceError: It cannot be read, as when the group is gone.
    """
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError as exc:
        raise DeviceError(f"cgroup: cannot read {path}: {exc.strerror}") from exc


def read_row(path: Path, name: str) -> int:
    """The number of one line of a file of names and numbers; quick, since it is sampled."""
    try:
        value = number_after(read_small(str(path)), name.encode() + b" ")
    except OSError as exc:
        raise DeviceError(f"cgroup: cannot read {path}: {exc.strerror}") from exc
    if value is None:
        raise DeviceError(f"cgroup: {path} has no line {name}")
    return value


def write(path: Path, text: str) -> bool:
    """Write to a file; False if the kernel or our rights do not allow it."""
    with contextlib.suppress(OSError):
        path.write_text(text, encoding="ascii")
        return True
    return False


def read_number(path: Path) -> int:
    """The number that is all a file says."""
    return int(read(path))


def read_table(path: Path) -> dict[str, int]:
    """Lines of a name and a number; others are left out."""
    rows = (line.split() for line in read(path).splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) == 2}


def read_keyed(text: str) -> dict[str, dict[str, str]]:
    """Lines of a device and KEY=VALUE pairs."""
    found = {}
    for line in text.splitlines():
        disk, *pairs = line.split()
        found[disk] = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
    return found


def read_pids(folder: Path) -> list[int]:
    """Host numbers of the processes in a group."""
    return [int(pid) for pid in read(folder / "cgroup.procs").split()]
