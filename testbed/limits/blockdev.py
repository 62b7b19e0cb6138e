"""The whole disk under a folder, to which Docker can limit a container's reads and writes.

A limit on a partition, or on a file system that spreads over several disks, is silently not
enforced, so a folder without one nameable disk is refused.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from tpi.errors import ConfigError

_MOVE = "put weights and results on ext4 or xfs on a disk, or leave out the device's disk rates"


@dataclass(frozen=True, slots=True)
class Disk:
    """A block device: `number` is "major:minor", as cgroup files name it."""

    name: str
    number: str

    @property
    def path(self) -> str:
        """Its device file."""
        return f"/dev/{self.name}"


def disk_of(path: Path, root: Path = Path("/")) -> Disk:
    """The whole disk that holds an existing file or folder; `root` has `sys` and `proc`, for tests.

    Raises:
        ConfigError: There is none, as below tmpfs, overlay, btrfs or zfs.
    """
    return disk_of_number(path.stat().st_dev, path, root)


def disk_of_number(device: int, path: Path, root: Path = Path("/")) -> Disk:
    """The same for the device number of a file system; `path` is only for messages."""
    number = f"{os.major(device)}:{os.minor(device)}"
    entry = root / "sys/dev/block" / number
    # Nameless devices (major 0) are not disks: tmpfs, overlay, btrfs, zfs, network file systems.
    if os.major(device) == 0 or not entry.exists():
        kind = _file_system(number, root)
        raise ConfigError(
            f"{path}: no single disk is under it ({kind}), so no disk rate can be held; {_MOVE}"
        )
    folder = entry.resolve()
    if (folder / "partition").exists():
        folder = folder.parent
    return Disk(_name(folder), (folder / "dev").read_text(encoding="ascii").strip())


def _name(folder: Path) -> str:
    """The name of its file in /dev: "!" stands for "/" in sysfs (cciss!c0d0)."""
    return folder.name.replace("!", "/")


def _file_system(number: str, root: Path) -> str:
    """The type of the file system with that device number, as /proc/self/mountinfo says."""
    try:
        lines = (root / "proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "unknown file system"
    for line in lines.splitlines():
        head, _, tail = line.partition(" - ")
        if head.split()[2:3] == [number] and tail:
            return tail.split()[0]
    return "unknown file system"
