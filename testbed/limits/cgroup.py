"""A process's control group, version 1 or 2 behind one interface: limits, use and counters.

`open_cgroup` finds the folders in `/proc/PID/cgroup` and the mounts. All values
are bytes or nanoseconds; None means "no limit" or "this kernel does not say".
"""

import contextlib
from collections.abc import Mapping
from pathlib import Path

from testbed.base import DeviceError
from testbed.host.procfs import number_after, read_small

# Version 1 writes "no limit" as the largest page-aligned int64.
_UNLIMITED = 1 << 62
# The kernel charges memory in steps of 64 pages at most.
_CHARGE_BYTES = 64 * 4096


class Cgroup:
    """The limits of a control group, what it uses, and which limits it reached.

    This is version 2, which has one folder for everything.
    """

    version = 2
    _current, _peak, _events = "memory.current", "memory.peak", "memory.events"
    _anon, _file = "anon", "file"  # of `memory.stat`

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def memory_current(self) -> int:
        """Bytes charged now, page cache included."""
        return _number(self.folder / self._current)

    @property
    def memory_peak(self) -> int | None:
        """The most bytes ever charged; None where the kernel does not keep it (before 5.19)."""
        path = self.folder / self._peak
        return _number(path) if path.exists() else None

    @property
    def memory_limit(self) -> int | None:
        """Bytes of memory."""
        return _v2_limit(_read(self.folder / "memory.max"))

    @property
    def swap_limit(self) -> int | None:
        """Bytes of swap beside it; None also where swap is not accounted."""
        path = self.folder / "memory.swap.max"
        return _v2_limit(_read(path)) if path.exists() else None

    @property
    def anon_bytes(self) -> int:
        """Anonymous memory now."""
        return _row(self.folder / "memory.stat", self._anon)

    @property
    def file_bytes(self) -> int:
        """Page cache now, shared memory included."""
        return _table(self.folder / "memory.stat")[self._file]

    @property
    def swap_bytes(self) -> int:
        """Swap in use now."""
        path = self.folder / "memory.swap.current"
        return _number(path) if path.exists() else 0

    @property
    def oom_kills(self) -> int:
        """Processes in it that the OOM killer ended, for whatever limit."""
        return _table(self.folder / self._events).get("oom_kill", 0)

    @property
    def limit_hits(self) -> int:
        """How often it reached its own limit."""
        return _table(self.folder / self._events).get("max", 0)

    @property
    def was_full(self) -> bool:
        """Whether its peak reached its limit, where `limit_hits` is not reliable."""
        return False

    @property
    def cpu_usage_ns(self) -> int:
        """CPU time used."""
        return _table(self.folder / "cpu.stat")["usage_usec"] * 1000

    @property
    def cpu_quota(self) -> tuple[int, int] | None:
        """(quota, period) in microseconds."""
        quota, period = _read(self.folder / "cpu.max").split()
        return None if quota == "max" else (int(quota), int(period))

    @property
    def throttling(self) -> tuple[int, int, int]:
        """Periods that passed, periods in which it was throttled, nanoseconds throttled."""
        stat = _table(self.folder / "cpu.stat")
        names = ("nr_periods", "nr_throttled", "throttled_usec")
        periods, throttled, throttled_us = (stat.get(name, 0) for name in names)
        return periods, throttled, throttled_us * 1000

    def io_bytes(self) -> dict[str, tuple[int, int]]:
        """Bytes read and written, by block device ("major:minor")."""
        return {
            disk: (int(row.get("rbytes", 0)), int(row.get("wbytes", 0)))
            for disk, row in _by_disk(self.folder / "io.stat").items()
        }

    def io_limits(self) -> dict[str, tuple[int | None, int | None]]:
        """Bytes per second that may be read and written, by block device."""
        rows = _by_disk(self.folder / "io.max")
        return {d: (_v2_limit(row["rbps"]), _v2_limit(row["wbps"])) for d, row in rows.items()}

    def reset_peak(self) -> bool:
        """Reset `memory_peak`; False where the kernel or our rights do not allow it."""
        return False  # the kernel resets it only for a process that keeps the file open

    def pids(self) -> list[int]:
        """Host numbers of the processes in it."""
        return [int(pid) for pid in _read(self.folder / "cgroup.procs").split()]


class _CgroupV1(Cgroup):
    """Version 1: one folder per controller."""

    version = 1
    _current, _peak = "memory.usage_in_bytes", "memory.max_usage_in_bytes"
    _events = "memory.oom_control"
    _anon, _file = "total_rss", "total_cache"

    def __init__(self, memory: Path, cpu: Path, cpuacct: Path, blkio: Path) -> None:
        super().__init__(memory)
        self._cpu, self._cpuacct, self._blkio = cpu, cpuacct, blkio

    @property
    def memory_limit(self) -> int | None:
        return _v1_limit(self.folder / "memory.limit_in_bytes")

    @property
    def swap_limit(self) -> int | None:
        path = self.folder / "memory.memsw.limit_in_bytes"
        both = _v1_limit(path) if path.exists() else None
        memory = self.memory_limit
        return None if both is None or memory is None else both - memory

    @property
    def swap_bytes(self) -> int:
        return _table(self.folder / "memory.stat").get("total_swap", 0)

    @property
    def limit_hits(self) -> int:
        # Newer kernels (6.18) leave it at 0. Where the limit of memory equals that of memory and
        # swap, the kernel counts only at the latter.
        both = self.folder / "memory.memsw.failcnt"
        hits = _number(both) if both.exists() else 0
        return hits + _number(self.folder / "memory.failcnt")

    @property
    def was_full(self) -> bool:
        limit, peak = self.memory_limit, self.memory_peak
        return limit is not None and peak is not None and peak >= limit - _CHARGE_BYTES

    @property
    def cpu_usage_ns(self) -> int:
        return _number(self._cpuacct / "cpuacct.usage")

    @property
    def cpu_quota(self) -> tuple[int, int] | None:
        quota = _number(self._cpu / "cpu.cfs_quota_us")
        return None if quota < 0 else (quota, _number(self._cpu / "cpu.cfs_period_us"))

    @property
    def throttling(self) -> tuple[int, int, int]:
        stat = _table(self._cpu / "cpu.stat")
        return stat["nr_periods"], stat["nr_throttled"], stat["throttled_time"]

    def io_bytes(self) -> dict[str, tuple[int, int]]:
        found: dict[str, dict[str, int]] = {}
        for line in _read(self._blkio / "blkio.throttle.io_service_bytes").splitlines():
            fields = line.split()
            if len(fields) == 3:
                found.setdefault(fields[0], {})[fields[1]] = int(fields[2])
        return {disk: (ops.get("Read", 0), ops.get("Write", 0)) for disk, ops in found.items()}

    def io_limits(self) -> dict[str, tuple[int | None, int | None]]:
        reads = _table(self._blkio / "blkio.throttle.read_bps_device")
        writes = _table(self._blkio / "blkio.throttle.write_bps_device")
        return {disk: (reads.get(disk), writes.get(disk)) for disk in {**reads, **writes}}

    def reset_peak(self) -> bool:
        with contextlib.suppress(OSError):
            (self.folder / self._peak).write_text("0", encoding="ascii")
            return True
        return False


def open_cgroup(pid: int, root: Path = Path("/")) -> Cgroup:
    """The control group of a process; `root` holds `proc` and `sys`, for tests."""
    own = _memberships(_read(root / "proc" / str(pid) / "cgroup"))
    mounts = _mounts(_read(root / "proc/self/mountinfo"))
    if "memory" not in own:
        return Cgroup(_folder(root, own, mounts, ""))
    return _CgroupV1(
        *(_folder(root, own, mounts, n) for n in ("memory", "cpu", "cpuacct", "blkio"))
    )


def _read(path: Path) -> str:
    """The text of a file; an unreadable one, as when the group is gone, is a DeviceError."""
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError as exc:
        raise DeviceError(f"cgroup: cannot read {path}: {exc.strerror}") from exc


def _row(path: Path, name: str) -> int:
    """The number in one line of a table; quick, because it is sampled."""
    try:
        value = number_after(read_small(str(path)), name.encode() + b" ")
    except OSError as exc:
        raise DeviceError(f"cgroup: cannot read {path}: {exc.strerror}") from exc
    if value is None:
        raise DeviceError(f"cgroup: {path} has no line {name}")
    return value


def _number(path: Path) -> int:
    return int(_read(path))


def _table(path: Path) -> dict[str, int]:
    """Lines of a name and a number; other lines are skipped."""
    rows = (line.split() for line in _read(path).splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) == 2}


def _by_disk(path: Path) -> dict[str, dict[str, str]]:
    """Lines of a disk and KEY=VALUE pairs."""
    rows = (line.split() for line in _read(path).splitlines())
    return {disk: dict(p.split("=", 1) for p in pairs if "=" in p) for disk, *pairs in rows}


def _v1_limit(path: Path) -> int | None:
    value = _number(path)
    return None if value >= _UNLIMITED else value


def _v2_limit(text: str) -> int | None:
    return None if text.strip() == "max" else int(text)


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
