"""Facts of the machine that a run was measured on, read from `/proc`, `/sys` and package metadata.

What cannot be read is None and never guessed. Two runs can be compared only if they share the
`host_fingerprint`.
"""

import hashlib
import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

import msgspec
from msgspec import Struct

from testbed.host.procfs import meminfo

DEPENDENCIES = ("torch", "numpy", "transformers", "accelerate", "safetensors", "tokenizers")
_FINGERPRINT = ("cpu_model", "cores", "memory_gib", "kernel", "architecture", "cgroup")


class Disk(Struct, frozen=True, forbid_unknown_fields=True):
    """The disk that holds a path; None where its mount was not found."""

    mount: str | None = None
    device: str | None = None
    file_system: str | None = None
    size_bytes: int = 0
    free_bytes: int = 0


class HostFacts(Struct, frozen=True, forbid_unknown_fields=True):
    """Facts of one host; None is what could not be read.

    Attributes:
        usable_cores: Those that this process may run on.
        throttle_count: How often the processor was throttled since it was started.
        load_1m: Runnable processes, mean of the last minute.
        versions: Of packages; None where one is not installed.
    """

    cpu_model: str | None = None
    cores: int | None = None
    usable_cores: int = 0
    memory_bytes: int | None = None
    memory_gib: int | None = None
    memory_available_bytes: int | None = None
    swap_bytes: int | None = None
    architecture: str = ""
    kernel: str = ""
    cgroup: int | None = None
    governor: str | None = None
    throttle_count: int | None = None
    load_1m: float | None = None
    weights_disk: Disk | None = None
    python: str = ""
    versions: Mapping[str, str | None] = msgspec.field(default_factory=dict)


def host_environment(weights_dir: Path | None = None, root: Path = Path("/")) -> HostFacts:
    """Facts of this host and of the disk under `weights_dir`; `root` holds `proc` and `sys`."""
    memory = meminfo(root / "proc")
    total_bytes = memory.get("MemTotal")
    return HostFacts(
        cpu_model=_cpu_model(root),
        cores=os.cpu_count(),
        usable_cores=len(os.sched_getaffinity(0)),
        memory_bytes=total_bytes,
        memory_gib=None if total_bytes is None else round(total_bytes / 2**30),
        memory_available_bytes=memory.get("MemAvailable"),
        swap_bytes=memory.get("SwapTotal"),
        architecture=platform.machine(),
        kernel=platform.release(),
        cgroup=cgroup_version(root),
        governor=_word(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        throttle_count=_number(
            root / "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count"
        ),
        load_1m=load_average(root),
        weights_disk=None if weights_dir is None else disk_of(weights_dir, root),
        python=platform.python_version(),
        versions=dependency_versions(),
    )


def host_fingerprint(host: HostFacts) -> str:
    """16 hexadecimal digits that change with processor, cores, memory, kernel or cgroups."""
    facts = json.dumps([getattr(host, name) for name in _FINGERPRINT])
    return hashlib.sha256(facts.encode()).hexdigest()[:16]


def dependency_versions(names: Sequence[str] = DEPENDENCIES) -> dict[str, str | None]:
    """Installed versions, without importing anything; None if not installed."""
    versions: dict[str, str | None] = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def load_average(root: Path = Path("/")) -> float | None:
    """Runnable processes, mean of the last minute."""
    words = (_word(root / "proc/loadavg") or "").split()
    return float(words[0]) if words else None


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes that programs can still take without swapping, as the kernel estimates."""
    return meminfo(root / "proc").get("MemAvailable")


def cgroup_version(root: Path = Path("/")) -> int | None:
    """2 where the unified hierarchy holds the controllers, 1 where the old ones do."""
    base = root / "sys/fs/cgroup"
    if (base / "cgroup.controllers").exists():
        return 2
    return 1 if (base / "memory").is_dir() else None


def disk_of(path: Path, root: Path = Path("/")) -> Disk:
    """Mount, file system and free bytes of the disk that holds a path (or its next parent)."""
    existing = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    usage = os.statvfs(existing)
    device, mount, kind = _mount_of(existing.resolve(), root)
    return Disk(
        mount=mount,
        device=device,
        file_system=kind,
        size_bytes=usage.f_frsize * usage.f_blocks,
        free_bytes=usage.f_frsize * usage.f_bavail,
    )


def _mount_of(path: Path, root: Path) -> tuple[str | None, str | None, str | None]:
    best: tuple[str | None, str | None, str | None] = (None, None, None)
    for line in (_word(root / "proc/mounts") or "").splitlines():
        device, mount, kind = line.split()[:3]
        # Later lines hide earlier ones on the same mount point.
        if path.is_relative_to(mount) and len(mount) >= len(best[1] or ""):
            best = (device, mount, kind)
    return best


def _cpu_model(root: Path) -> str | None:
    for line in (_word(root / "proc/cpuinfo") or "").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return None


def _word(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _number(path: Path) -> int | None:
    text = _word(path)
    return int(text) if text is not None and text.isdigit() else None
