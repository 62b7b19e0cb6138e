"""Control groups of version 2: one folder for everything. See `cgroup.Cgroup` for what is what."""

from pathlib import Path

from testbed.limits.cgroup_files import (
    read,
    read_keyed,
    read_number,
    read_pids,
    read_row,
    read_table,
)

_US = 1_000


class CgroupV2:
    """Version 2: one folder for everything."""

    version = 2

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def memory_current(self) -> int:
        """Bytes charged now, page cache included."""
        return read_number(self.folder / "memory.current")

    @property
    def memory_peak(self) -> int | None:
        """The most bytes ever charged; None before kernel 5.19."""
        path = self.folder / "memory.peak"
        return read_number(path) if path.exists() else None

    @property
    def memory_limit(self) -> int | None:
        """Bytes of memory."""
        return _limit(read(self.folder / "memory.max"))

    @property
    def swap_limit(self) -> int | None:
        """Bytes of swap beside it; None also where swap is not accounted."""
        path = self.folder / "memory.swap.max"
        return _limit(read(path)) if path.exists() else None

    @property
    def anon_bytes(self) -> int:
        """Anonymous memory now."""
        return read_row(self.folder / "memory.stat", "anon")

    @property
    def file_bytes(self) -> int:
        """Page cache now, shared memory included."""
        return read_table(self.folder / "memory.stat")["file"]

    @property
    def swap_bytes(self) -> int:
        """Swap in use now."""
        path = self.folder / "memory.swap.current"
        return read_number(path) if path.exists() else 0

    @property
    def oom_kills(self) -> int:
        """Processes in it that the OOM killer ended, for whatever limit."""
        return read_table(self.folder / "memory.events").get("oom_kill", 0)

    @property
    def limit_hits(self) -> int:
        """How often its own limit was run into."""
        return read_table(self.folder / "memory.events").get("max", 0)

    @property
    def was_full(self) -> bool:
        """Never: `limit_hits` can be relied on."""
        return False

    @property
    def cpu_usage_ns(self) -> int:
        """CPU time used."""
        return read_table(self.folder / "cpu.stat")["usage_usec"] * _US

    @property
    def cpu_quota(self) -> tuple[int, int] | None:
        """(quota, period) in microseconds."""
        quota, period = read(self.folder / "cpu.max").split()
        return None if quota == "max" else (int(quota), int(period))

    @property
    def throttling(self) -> tuple[int, int, int]:
        """Periods that passed, periods in which it was throttled, nanoseconds throttled."""
        stat = read_table(self.folder / "cpu.stat")
        throttled_us = stat.get("throttled_usec", 0)
        return stat.get("nr_periods", 0), stat.get("nr_throttled", 0), throttled_us * _US

    def io_bytes(self) -> dict[str, tuple[int, int]]:
        """Bytes read and written, by block device ("major:minor")."""
        rows = read_keyed(read(self.folder / "io.stat"))
        return {
            d: (int(row.get("rbytes", 0)), int(row.get("wbytes", 0))) for d, row in rows.items()
        }

    def io_limits(self) -> dict[str, tuple[int | None, int | None]]:
        """Bytes per second that may be read and written, by block device."""
        rows = read_keyed(read(self.folder / "io.max"))
        return {d: (_limit(r["rbps"]), _limit(r["wbps"])) for d, r in rows.items()}

    def reset_peak(self) -> bool:
        """Never: version 2 resets it only for whoever keeps the file open."""
        return False

    def pids(self) -> list[int]:
        """Host numbers of the processes in it."""
        return read_pids(self.folder)


def _limit(text: str) -> int | None:
    return None if text.strip() == "max" else int(text)
