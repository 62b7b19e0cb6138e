"""Control groups of version 1: one folder per controller. See `cgroup.Cgroup` for what is what."""

from collections.abc import Mapping
from pathlib import Path

from testbed.limits.cgroup_files import read, read_number, read_pids, read_row, read_table, write

# "No limit" is the largest page-aligned int64.
_UNLIMITED = 1 << 62
# Memory is charged by 64 pages at most.
_CHARGE_BYTES = 64 * 4096


class CgroupV1:
    """Version 1: one folder per controller."""

    version = 1

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self.folders = dict(folders)
        self._memory = self.folders["memory"]

    @property
    def memory_current(self) -> int:
        """Bytes charged now, page cache included."""
        return read_number(self._memory / "memory.usage_in_bytes")

    @property
    def memory_peak(self) -> int:
        """The most bytes ever charged."""
        return read_number(self._memory / "memory.max_usage_in_bytes")

    @property
    def memory_limit(self) -> int | None:
        """Bytes of memory."""
        return _limit(read_number(self._memory / "memory.limit_in_bytes"))

    @property
    def swap_limit(self) -> int | None:
        """Bytes of swap beside it; None also where swap is not accounted."""
        path = self._memory / "memory.memsw.limit_in_bytes"
        both = _limit(read_number(path)) if path.exists() else None
        memory = self.memory_limit
        return None if both is None or memory is None else both - memory

    @property
    def anon_bytes(self) -> int:
        """Anonymous memory now."""
        return read_row(self._memory / "memory.stat", "total_rss")

    @property
    def file_bytes(self) -> int:
        """Page cache now, shared memory included."""
        return read_table(self._memory / "memory.stat")["total_cache"]

    @property
    def swap_bytes(self) -> int:
        """Swap in use now."""
        return read_table(self._memory / "memory.stat").get("total_swap", 0)

    @property
    def oom_kills(self) -> int:
        """Processes in it that the OOM killer ended, for whatever limit."""
        return read_table(self._memory / "memory.oom_control").get("oom_kill", 0)

    @property
    def limit_hits(self) -> int:
        """How often its own limit was run into; newer kernels (6.18) leave it at 0."""
        # Where both limits are equal, the kernel counts only at the one of memory and swap.
        both = self._memory / "memory.memsw.failcnt"
        hits = read_number(both) if both.exists() else 0
        return hits + read_number(self._memory / "memory.failcnt")

    @property
    def was_full(self) -> bool:
        """Whether its peak came to its limit, but for what one charge takes."""
        limit = self.memory_limit
        return limit is not None and self.memory_peak >= limit - _CHARGE_BYTES

    @property
    def cpu_usage_ns(self) -> int:
        """CPU time used."""
        return read_number(self.folders["cpuacct"] / "cpuacct.usage")

    @property
    def cpu_quota(self) -> tuple[int, int] | None:
        """(quota, period) in microseconds."""
        quota = read_number(self.folders["cpu"] / "cpu.cfs_quota_us")
        return (
            None if quota < 0 else (quota, read_number(self.folders["cpu"] / "cpu.cfs_period_us"))
        )

    @property
    def throttling(self) -> tuple[int, int, int]:
        """Periods that passed, periods in which it was throttled, nanoseconds throttled."""
        stat = read_table(self.folders["cpu"] / "cpu.stat")
        return stat["nr_periods"], stat["nr_throttled"], stat["throttled_time"]

    def io_bytes(self) -> dict[str, tuple[int, int]]:
        """Bytes read and written, by block device ("major:minor")."""
        found: dict[str, dict[str, int]] = {}
        for line in read(self.folders["blkio"] / "blkio.throttle.io_service_bytes").splitlines():
            fields = line.split()
            if len(fields) == 3:
                found.setdefault(fields[0], {})[fields[1]] = int(fields[2])
        return {disk: (ops.get("Read", 0), ops.get("Write", 0)) for disk, ops in found.items()}

    def io_limits(self) -> dict[str, tuple[int | None, int | None]]:
        """Bytes per second that may be read and written, by block device."""
        folder = self.folders["blkio"]
        reads = read_table(folder / "blkio.throttle.read_bps_device")
        writes = read_table(folder / "blkio.throttle.write_bps_device")
        return {disk: (reads.get(disk), writes.get(disk)) for disk in {**reads, **writes}}

    def reset_peak(self) -> bool:
        """Let `memory_peak` begin anew; False where our rights do not allow it."""
        return write(self._memory / "memory.max_usage_in_bytes", "0")

    def pids(self) -> list[int]:
        """Host numbers of the processes in it."""
        return read_pids(self._memory)


def _limit(value: int) -> int | None:
    return None if value >= _UNLIMITED else value
