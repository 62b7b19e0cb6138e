"""The limits of a device, CPU, memory, swap and disk, as they are enforced on this host.

Values are those of the emulated device already divided by the dilation
(`harness/plan/dilation.py`). None is "not limited", and the record says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass

NOTES = (
    "docker: devices share this host's caches, memory bandwidth and page cache",
    "docker: disk rates hold for what reaches the disk, not for what the page cache has",
    "docker: with cgroup version 1, buffered writes are not held to the disk's rate",
)

LEAST_CPUS = 0.001  # the kernel's shortest quota, 1 ms, in its longest period


@dataclass(frozen=True, slots=True)
class DeviceLimits:
    """The limits of one device; None for no limit.

    Attributes:
        cpus: CPU seconds per second.
        threads: Compute threads that its programs are told to use.
        memory: Bytes.
        swap: Bytes beside `memory`; needs swap on the host.
        read_bps: Bytes per second from the disk that holds the weights; `write_bps` to it.
    """

    cpus: float | None = None
    threads: int = 1
    memory: int | None = None
    swap: int = 0
    read_bps: int | None = None
    write_bps: int | None = None


def limit_notes(limits: Sequence[DeviceLimits]) -> tuple[str, ...]:
    """What containers with these limits are not limited in, for the user and the record."""
    free = {
        "CPU": any(limit.cpus is None for limit in limits),
        "memory": any(limit.memory is None for limit in limits),
        "disk reads": any(limit.read_bps is None for limit in limits),
        "disk writes": any(limit.write_bps is None for limit in limits),
    }
    return NOTES + tuple(f"docker: {what} not limited" for what in free if free[what])
