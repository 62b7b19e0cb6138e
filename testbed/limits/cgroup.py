"""A process's control group, version 1 and 2 behind one interface: limits, use and counters.

The folders are found from `/proc/PID/cgroup` and the mounts; nothing is assumed about who made
them. All values are bytes or nanoseconds, None is "no limit" or "this kernel does not say".
`open_cgroup` comes first; `cgroup_v1.py` and `cgroup_v2.py` differ only in files and units.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from testbed.base import DeviceError
from testbed.limits.cgroup_files import read
from testbed.limits.cgroup_v1 import CgroupV1
from testbed.limits.cgroup_v2 import CgroupV2


class Cgroup(Protocol):
    """What a control group is held to, what it uses and what it ran into."""

    version: int

    @property
    def memory_current(self) -> int:
        """Bytes charged now, page cache included."""

    @property
    def memory_peak(self) -> int | None:
        """The most bytes ever charged; None where the kernel does not keep it."""

    @property
    def memory_limit(self) -> int | None:
        """Bytes of memory."""

    @property
    def swap_limit(self) -> int | None:
        """Bytes of swap beside it; None also where swap is not accounted."""

    @property
    def anon_bytes(self) -> int:
        """Anonymous memory now."""

    @property
    def file_bytes(self) -> int:
        """Page cache now, shared memory included."""

    @property
    def swap_bytes(self) -> int:
        """Swap in use now."""

    @property
    def oom_kills(self) -> int:
        """Processes in it that the OOM killer ended, for whatever limit."""

    @property
    def limit_hits(self) -> int:
        """How often its own limit was run into."""

    @property
    def was_full(self) -> bool:
        """Whether its peak came to its limit, where `limit_hits` cannot be relied on."""

    @property
    def cpu_usage_ns(self) -> int:
        """CPU time used."""

    @property
    def cpu_quota(self) -> tuple[int, int] | None:
        """(quota, period) in microseconds."""

    @property
    def throttling(self) -> tuple[int, int, int]:
        """Periods that passed, periods in which it was throttled, nanoseconds throttled."""

    def io_bytes(self) -> dict[str, tuple[int, int]]:
        """Bytes read and written, by block device ("major:minor")."""

    def io_limits(self) -> dict[str, tuple[int | None, int | None]]:
        """Bytes per second that may be read and written, by block device."""

    def reset_peak(self) -> bool:
        """Let `memory_peak` begin anew; False where the kernel or our rights do not allow it."""

    def pids(self) -> list[int]:
        """Host numbers of the processes in it."""


def open_cgroup(pid: int, root: Path = Path("/")) -> Cgroup:
    """The control group of a process.

    Args:
        pid: Its number on the host.
        root: Where `proc` and `sys` lie, for tests.

    Raises:
        DeviceError: The process is gone, or its group is not mounted here.
    """
    own = _memberships(read(root / "proc" / str(pid) / "cgroup"))
    mounts = _mounts(read(root / "proc/self/mountinfo"))
    if "memory" not in own:
        return CgroupV2(_folder(root, own, mounts, ""))
    names = ("memory", "cpu", "cpuacct", "blkio")
    return CgroupV1({name: _folder(root, own, mounts, name) for name in names})


def _memberships(text: str) -> dict[str, str]:
    """Path by controller, "" for version 2, from `/proc/PID/cgroup`."""
    found = {}
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        found.update(dict.fromkeys(controllers.split(","), path))
    return found


def _mounts(text: str) -> dict[str, tuple[str, str]]:
    """(root, mount point) by controller, "" for version 2, from `/proc/self/mountinfo`."""
    found: dict[str, tuple[str, str]] = {}
    for line in text.splitlines():
        head, _, tail = line.partition(" - ")
        place, kind = (head.split()[3], head.split()[4]), tail.split()
        if kind[:1] == ["cgroup2"]:
            found.setdefault("", place)
        elif kind[:1] == ["cgroup"]:
            for option in kind[-1].split(","):
                found.setdefault(option, place)
    return found


def _folder(
    root: Path, own: Mapping[str, str], mounts: Mapping[str, tuple[str, str]], controller: str
) -> Path:
    name = controller or "version 2"
    if controller not in own or controller not in mounts:
        raise DeviceError(f"cgroup: controller {name} is not mounted here; `make doctor` says more")
    top, point = mounts[controller]
    # A mount may show only a part of the hierarchy, from `top` downwards.
    path = own[controller]
    inside = path.removeprefix(top) if top != "/" else path
    folder = root / point.lstrip("/") / inside.lstrip("/")
    if not folder.is_dir():
        raise DeviceError(f"cgroup: {folder} of controller {name} is not there")
    return folder
