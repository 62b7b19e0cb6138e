"""What `make doctor` looks at on this machine; `doctor.py` judges and shows it.

Every method looks at one thing, quickly, and leaves nothing behind. It raises an error of ours or
of the system where it cannot look.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import docker

from testbed.base import DeviceError
from testbed.docker.cleanup import dead_containers
from testbed.docker.daemon import Daemon, daemon_errors
from testbed.host.environment import available_memory
from testbed.host.label import is_alive
from testbed.image import image_tag
from testbed.image.build import image_problem, old_tags
from testbed.limits.blockdev import disk_of
from testbed.limits.cgroup import open_cgroup
from testbed.limits.swap import accounting_problem, leftover_swap, swap_areas
from testbed.links.network import capabilities
from testbed.switch.build import find_compiler
from tpi.errors import ConfigError

# A daemon that hangs must not make the doctor hang.
_TIMEOUT_S = 3


class Machine:
    """This machine."""

    def __init__(self, folder: Path, root: Path = Path("/")) -> None:
        """Prepare for the folder of weights, which need not exist; `root` is for tests."""
        self.folder = folder.absolute()
        self._root = root
        self._daemon: Daemon | None = None
        self._failure: DeviceError | None = None

    def close(self) -> None:
        """Close the connection to the daemon. Twice is fine."""
        if self._daemon is not None:
            self._daemon.close()

    def is_docker_installed(self) -> bool:
        """Whether the daemon's program is here."""
        return shutil.which("dockerd", path=f"{os.environ.get('PATH', '')}:/usr/sbin") is not None

    def daemon(self) -> Mapping[str, Any]:
        """The daemon's version and what it says of itself; a DeviceError if it does not answer."""
        client = self._client()
        with daemon_errors("docker"):
            return {**client.info(), **client.version()}

    def image(self) -> tuple[str, str | None]:
        """The device image's tag, and what is wrong with it."""
        return image_tag(), image_problem(self._client())

    def dead_containers(self) -> list[str]:
        """Names of containers whose runs are gone."""
        return [name for name, _, _ in dead_containers(self._client(), is_alive)]

    def old_images(self) -> list[str]:
        """Tags of device images that nothing uses any more."""
        client = self._client()
        with daemon_errors("docker"):
            return old_tags(client)

    def dead_swap(self) -> list[Path]:
        """Swap files of runs that are gone."""
        return leftover_swap(self.folder, root=self._root)

    def cgroup(self) -> str:
        """The control groups of a process here; a missing controller is an error."""
        version = open_cgroup(os.getpid(), self._root).version
        if version == 1:
            return "version 1: memory, cpu, cpuacct, blkio"
        text = (self._root / "sys/fs/cgroup/cgroup.controllers").read_text(encoding="ascii")
        missing = [name for name in ("memory", "cpu", "io") if name not in text.split()]
        if missing:
            raise ConfigError(f"version 2 without {', '.join(missing)}")
        return f"version 2: {', '.join(text.split())}"

    def links(self) -> Mapping[str, str | None]:
        """What is wrong with each kind of link, by backend."""
        return capabilities()

    def compiler(self) -> Path | None:
        """The C compiler."""
        return find_compiler()

    def is_root(self) -> bool:
        """Whether we may make interfaces and swap."""
        return os.geteuid() == 0

    def swap(self) -> tuple[int, int, str | None]:
        """(bytes, bytes in use, why devices cannot be held to it)."""
        areas = swap_areas(self._root)
        total, used = sum(a.size_bytes for a in areas), sum(a.used_bytes for a in areas)
        return total, used, accounting_problem(self._root)

    def disk(self) -> str:
        """The disk under the weights; a ConfigError if there is none whose rate can be limited."""
        folder = next(path for path in (self.folder, *self.folder.parents) if path.exists())
        disk = disk_of(folder, self._root)
        return f"{disk.path} ({disk.number})"

    def cores(self) -> tuple[int, int]:
        """(cores of the machine, cores that we may use)."""
        return os.cpu_count() or 1, len(os.sched_getaffinity(0))

    def memory(self) -> int:
        """Bytes that are free or can be freed at once."""
        found = available_memory(self._root)
        if found is None:
            raise ConfigError("/proc/meminfo does not say what is available")
        return found

    def congestion_controls(self) -> list[str]:
        """What TCP can be told to use in a container."""
        path = self._root / "proc/sys/net/ipv4/tcp_available_congestion_control"
        return path.read_text(encoding="ascii").split()

    def _client(self) -> docker.APIClient:
        host = os.environ.get("DOCKER_HOST") or "unix://"
        if not host.startswith("unix://"):
            raise ConfigError(f"docker: the daemon at {host} is not this machine's")
        if self._failure is not None:  # a daemon that does not answer is not waited for again
            raise self._failure
        try:
            self._daemon = self._daemon or Daemon(timeout_s=_TIMEOUT_S)
        except DeviceError as exc:
            self._failure = exc
            raise
        with daemon_errors("docker"):
            return self._daemon.client
