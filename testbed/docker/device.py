"""One container as a device: programs, meter and facts; see `testbed.base.Device`.

On the host a device has a folder with three parts: it may write only to `work`, it may read
`specs`, and it does not see `logs`, so that no program can make the harness write elsewhere.
"""

import contextlib
import json
import os
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from testbed.base import DeviceError, Meters
from testbed.docker.container import Container
from testbed.docker.container_spec import ContainerSpec
from testbed.docker.exec_process import ExecProcess
from testbed.docker.meter import ContainerMeter
from testbed.host.procfs import PROC
from testbed.limits.cgroup import Cgroup
from tpi.errors import ConfigError, map_errors
from tpi.program.process import Inbox

WORK, SPECS, TMP = "/work", "/specs", "/tmp"
# Below what the kernel gives to outgoing connections.
_PORTS = range(20_000, 30_000)
_LISTENS = "0A"


class DeviceFolder:
    """A device's folder on the host."""

    def __init__(self, path: Path, owner: tuple[int, int]) -> None:
        """Make it; a DeviceError if it exists or cannot be made."""
        self.path = path
        self._owner = owner
        with map_errors({OSError: DeviceError}, f"work folder {path}"):
            (path / "logs").mkdir(parents=True, mode=0o700)
            self._make_owned(path / "specs")
            self._make_owned(path / "work")
            self._make_owned(path / "work" / "tmp")

    @property
    def mounts(self) -> list[tuple[Path, str, bool]]:
        """What the container sees of it: (host path, its path, whether it may write)."""
        work = self.path / "work"
        return [(work, WORK, True), (work / "tmp", TMP, True), (self.path / "specs", SPECS, False)]

    def add_program(self, name: str, spec: Mapping[str, object] | None) -> str | None:
        """Make a program's work folder, and write its spec; gives the spec's path inside."""
        with map_errors({OSError: DeviceError}, f"work folder {self.path}"):
            self._make_owned(self.path / "work" / name)
            if spec is None:
                return None
            path = self.path / "specs" / f"{name}.json"
            with path.open("x", encoding="utf-8") as file:
                os.fchmod(file.fileno(), 0o400)
                os.fchown(file.fileno(), *self._owner)
                json.dump(spec, file)
        return f"{SPECS}/{path.name}"

    def log(self, name: str) -> Path:
        """Where a program's log goes."""
        return self.path / "logs" / f"{name}.log"

    def _make_owned(self, path: Path) -> None:
        path.mkdir(mode=0o700)
        # A program of this device may have made a link of that name by now.
        os.chown(path, *self._owner, follow_symlinks=False)


class DockerDevice:
    """One container; `start` and `connect` come before anything else."""

    python = "python3"

    def __init__(
        self,
        spec: ContainerSpec,
        container: Container,
        folder: DeviceFolder,
        about: Mapping[str, object],
    ) -> None:
        """Take a container that is yet to be started; `about` is added to the device's facts."""
        self.index = spec.index
        self.address = ""
        self._spec = spec
        self._container = container
        self._folder = folder
        self._facts = dict(about)
        self._num_programs = 0
        self._processes: list[ExecProcess] = []
        self._meter: ContainerMeter | None = None

    @property
    def pid(self) -> int:
        """Host number of the container's first process, which owns its namespaces."""
        return self._container.pid

    @property
    def cgroup(self) -> Cgroup:
        """Its control group."""
        return self._container.cgroup

    def start(self) -> None:
        """Start the container, and sample its memory from now on."""
        self._container.start()
        self._meter = ContainerMeter(self._running_pids, self.cgroup)
        self._meter.start()

    def connect(self, address: str, link_backend: str) -> None:
        """Take note of the address that its link has, and of what emulates it."""
        self.address = address
        self._facts["link_backend"] = link_backend
        self.facts()

    def free_port(self) -> int:
        """A TCP port of the device that nobody listens on at the moment."""
        tables = [PROC / str(self.pid) / "net" / name for name in ("tcp", "tcp6")]
        with map_errors({OSError: DeviceError}, f"device {self.index}"):
            return free_port([path.read_text() for path in tables if path.exists()])

    def path_of(self, host_path: Path) -> str:
        """Where the device sees a file or folder of the host, links followed."""
        real = host_path.resolve()
        for host, inside, _ in self._spec.mounts:
            if real.is_relative_to(host):
                return str(Path(inside) / real.relative_to(host))
        raise ConfigError(
            f"{host_path}: device {self.index} does not see it, as no mounted folder holds {real}"
        )

    def run(
        self, argv: Sequence[str], inbox: Inbox, spec: Mapping[str, object] | None = None
    ) -> ExecProcess:
        """Start a program in a work folder of its own on the device."""
        # Also one that could not be started has had its folder.
        name = f"program-{self._num_programs}"
        self._num_programs += 1
        path = self._folder.add_program(name, spec)
        process = ExecProcess(
            self.index,
            argv if path is None else [*argv, path],
            inbox,
            self._container,
            f"{WORK}/{name}",
            self._folder.log(name),
        )
        self._processes.append(process)
        return process

    def meter(self) -> Meters:
        """Peaks so far of everything that ran on the device since `reset_meter`."""
        if self._meter is None:
            return Meters(words=dict.fromkeys(("rss_hwm", "anon_peak", "cgroup_peak"), "no start"))
        return self._meter.read()

    def reset_meter(self) -> None:
        """Forget all peaks so far: what a probe used is not the system's."""
        if self._meter is not None:
            self._meter.reset()

    def facts(self) -> dict[str, object]:
        """Image, limits in force as the kernel says, and counters; as last seen once it is gone."""
        if self._container.id:
            with contextlib.suppress(DeviceError):
                self._facts.update(
                    address=self.address,
                    container=self._container.id[:12],
                    image_id=self._container.image_id,
                    limits=limits_in_force(self.cgroup),
                    counters=counters_of(self.cgroup),
                )
        return dict(self._facts)

    def ask_to_end(self) -> None:
        """Tell everything that runs on this device to end, without waiting."""
        for process in self._processes:
            process.ask_to_end()

    def close(self) -> None:
        """End everything on the device, take the last readings, have the container removed."""
        try:
            for process in self._processes:
                process.stop()
        finally:
            if self._meter is not None:
                self._meter.close()
                self.facts()
            self._container.remove()

    def _running_pids(self) -> list[int]:
        return [p.pid for p in self._processes if p.running and p.pid]


def limits_in_force(cgroup: Cgroup) -> dict[str, object]:
    """What the kernel holds a device to, for the run record; null is no limit."""
    quota = cgroup.cpu_quota
    rates = {
        disk: {"read_bps": read_bps, "write_bps": write_bps}
        for disk, (read_bps, write_bps) in cgroup.io_limits().items()
    }
    return {
        "cgroup_version": cgroup.version,
        "memory_bytes": cgroup.memory_limit,
        "swap_bytes": cgroup.swap_limit,
        "cpus": quota and quota[0] / quota[1],
        "cpu_quota_us": quota and quota[0],
        "cpu_period_us": quota and quota[1],
        "disks": rates,
    }


def counters_of(cgroup: Cgroup) -> dict[str, object]:
    """What a device used and ran into since it was made, for the run record."""
    periods, throttled, throttled_ns = cgroup.throttling
    io = cgroup.io_bytes()
    return {
        "cpu_s": cgroup.cpu_usage_ns / 1e9,
        "cpu_periods": periods,
        "cpu_periods_throttled": throttled,
        "cpu_throttled_s": throttled_ns / 1e9,
        "oom_kills": cgroup.oom_kills,
        "memory_limit_hits": cgroup.limit_hits,
        "memory_was_full": cgroup.was_full,
        "file_bytes": cgroup.file_bytes,
        "swap_bytes": cgroup.swap_bytes,
        "disk_bytes": {disk: {"read": r, "written": w} for disk, (r, w) in io.items()},
    }


def free_port(tables: Sequence[str]) -> int:
    """A port that no line of `/proc/PID/net/tcp` and `tcp6` has as its own."""
    rows = [line.split() for table in tables for line in table.splitlines()[1:]]
    used = {int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == _LISTENS}
    return random.choice([port for port in _PORTS if port not in used])
