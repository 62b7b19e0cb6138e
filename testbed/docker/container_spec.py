"""What a device's container is made of, what Docker is asked for, and what is in force. Pure.

Docker leaves out what the kernel cannot do and only warns, so what is in force is read back from
the control group and compared. Programs run without root's rights, so mounts must be readable.
"""

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from docker.types import Mount, Ulimit

from testbed.base import DeviceError
from testbed.host.procfs import host_swap_bytes
from testbed.limits.blockdev import Disk
from testbed.limits.cgroup import Cgroup
from testbed.limits.limits import LEAST_CPUS, DeviceLimits
from tpi.errors import ConfigError

# Reads until its input ends. Its half a MiB counts as the device's memory.
_HOLDER = ("cat",)
_MAX_PROCESSES = 1024
# Docker's 64 MiB are too few for what gloo and torch share.
_SHM_BYTES = 256 << 20
# The host's OOM killer, if it comes, takes a device and not the harness.
_OOM_SCORE_ADJ = 500
# A quota counts per period. Short ones keep lock-step work smooth; at 5 ms, devices that together
# use 85 % of the host do not get all of theirs within each (see results/LOG.md). Quotas under 1 ms
# are mostly overhead.
_PERIOD_US, _MIN_QUOTA_US, _MAX_PERIOD_US = 10_000, 1_000, 1_000_000


@dataclass(frozen=True, slots=True)
class ContainerSpec:
    """Everything that decides a container.

    Attributes:
        name: The container's own, unique on this host.
        image: Tag or id.
        user: Numbers of user and group of everything in it.
        mounts: (host path, path in the container, whether it may write there).
        env: Variables of every program.
        disks: Those whose rates are limited.
    """

    index: int
    name: str
    image: str
    user: tuple[int, int]
    limits: DeviceLimits
    labels: Mapping[str, str] = field(default_factory=dict)
    mounts: Sequence[tuple[Path, str, bool]] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    disks: Sequence[Disk] = ()
    cgroup_version: int = 2


def cpu_quota(cpus: float) -> tuple[int, int]:
    """(quota, period) in microseconds: 10 ms periods, longer where a quota would be below 1 ms."""
    period = max(_PERIOD_US, round(_MIN_QUOTA_US / cpus))
    if period > _MAX_PERIOD_US:
        raise DeviceError(
            f"cpus: a share of {cpus:g} is less than {LEAST_CPUS:g}, the kernel's smallest"
        )
    return max(_MIN_QUOTA_US, round(period * cpus)), period


def container_arguments(spec: ContainerSpec) -> dict[str, Any]:
    """The arguments of `create_container`; `host_config` has those of `create_host_config`."""
    return {
        "image": spec.image,
        "name": spec.name,
        "command": list(_HOLDER),
        "hostname": f"device-{spec.index}",
        "user": f"{spec.user[0]}:{spec.user[1]}",
        "environment": dict(spec.env),
        "labels": dict(spec.labels),
        "stdin_open": True,
        "host_config": {
            "network_mode": "none",
            "cap_drop": ["ALL"],
            "security_opt": ["no-new-privileges"],
            "read_only": True,
            "init": True,
            "auto_remove": True,
            "pids_limit": _MAX_PROCESSES,
            "shm_size": _SHM_BYTES,
            "oom_score_adj": _OOM_SCORE_ADJ,
            "log_config": {"Type": "none"},
            # The signal tells of a crash; its memory must not be written at the disk's rate.
            "ulimits": [Ulimit(name="core", soft=0, hard=0)],
            "mounts": [
                Mount(inside, str(host), type="bind", read_only=not writable)
                for host, inside, writable in spec.mounts
            ],
            **_limit_arguments(spec),
        },
    }


def _limit_arguments(spec: ContainerSpec) -> dict[str, Any]:
    limits = spec.limits
    found: dict[str, Any] = {}
    if limits.memory is not None:
        found["mem_limit"] = limits.memory
        found["memswap_limit"] = limits.memory + limits.swap
        if limits.swap == 0 and spec.cgroup_version == 1:
            found["mem_swappiness"] = 0
    if limits.cpus is not None:
        found["cpu_quota"], found["cpu_period"] = cpu_quota(limits.cpus)
    for word, rate in (("read", limits.read_bps), ("write", limits.write_bps)):
        if rate is not None:
            found[f"device_{word}_bps"] = [{"Path": disk.path, "Rate": rate} for disk in spec.disks]
    return found


def limit_differences(spec: ContainerSpec, cgroup: Cgroup) -> list[str]:
    """Limits that differ from what is in force."""
    limits = spec.limits
    rates = cgroup.io_limits() if limits.read_bps or limits.write_bps else {}
    pairs: list[tuple[str, object, object]] = [
        ("cpu quota", limits.cpus and cpu_quota(limits.cpus), cgroup.cpu_quota),
        # The kernel counts whole pages.
        ("memory", limits.memory and limits.memory & ~4095, cgroup.memory_limit),
    ]
    swap = cgroup.swap_limit
    if limits.memory is not None and (swap is not None or limits.swap or host_swap_bytes()):
        pairs.append(("swap", limits.swap & ~4095, swap))
    for number in (disk.number for disk in spec.disks):
        read_bps, write_bps = rates.get(number, (None, None))
        pairs.append((f"read rate of disk {number}", limits.read_bps, read_bps))
        pairs.append((f"write rate of disk {number}", limits.write_bps, write_bps))
    return [f"{what}: asked for {want}, in force {got}" for what, want, got in pairs if want != got]


def check_readable(folder: Path, owner: tuple[int, int]) -> None:
    """Raise a ConfigError unless a user and its only group can read everything in a folder."""
    for path in _walk(folder):
        try:
            info = path.stat()
        except OSError as exc:
            raise ConfigError(f"{path}: {exc.strerror}, and is to be seen by devices") from exc
        if not is_readable(info, owner):
            raise ConfigError(
                f"{path}: mode {stat.filemode(info.st_mode)} of user {info.st_uid}, so user"
                f" {owner[0]} of the containers cannot read it; `chmod -R a+rX {folder}`"
            )


def is_readable(info: os.stat_result, owner: tuple[int, int]) -> bool:
    """Whether its mode lets a user read a file, or list and enter a folder."""
    need = 0b101 if stat.S_ISDIR(info.st_mode) else 0b100
    shift = 6 if info.st_uid == owner[0] else 3 if info.st_gid == owner[1] else 0
    return (info.st_mode >> shift) & need == need


def _walk(folder: Path) -> Iterator[Path]:
    yield folder
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(parent, name)
            # A link is followed in the container, where it may lead nowhere: its program says so.
            if not path.is_symlink():
                yield path
