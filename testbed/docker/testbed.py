"""Devices that are containers of this host's Docker daemon, with limits and an emulated link.

A device sees this source tree and the model folders read-only, and a work folder of its own on the
host's disk; its link is its only network. `device.py` has the device, `container.py` its container,
`exec_process.py` a program.
"""

import logging
import os
import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path

from testbed.base import DeviceError, Testbed, VerificationReport
from testbed.docker.container import Container
from testbed.docker.container_spec import ContainerSpec, check_readable
from testbed.docker.daemon import Daemon
from testbed.docker.device import TMP, WORK, DeviceFolder, DockerDevice
from testbed.host.label import RunLabel
from testbed.host.procfs import host_swap_bytes
from testbed.limits.blockdev import Disk, disk_of
from testbed.limits.limits import DeviceLimits, limit_notes
from testbed.links.link import LinkSpec
from testbed.links.network import Network, open_network
from testbed.local.local import device_environment
from testbed.verify.verifier import LimitVerifier
from tpi.program.process import make_inbox
from tpi.weights.verify import stamp_path

log = logging.getLogger(__name__)

_ROOT = Path(__file__).resolve().parents[2]
_SOURCES = ("tpi", "baselines", "testbed")
_LAB, _MODELS = "/lab", "/models"
# The user of programs where the harness is root: a number that no user has.
_UNPRIVILEGED = (65532, 65532)
_MAX_STARTING = 4
_WARM_UP_S = 120.0


NetworkFactory = Callable[[Sequence[LinkSpec]], Network]
# Gets the devices that are up and their links.
VerifierFactory = Callable[[Sequence[DockerDevice], Network], LimitVerifier]


class DockerTestbed(Testbed):
    """Devices that are containers."""

    name = "docker"

    def __init__(
        self,
        work_dir: Path,
        limits: Sequence[DeviceLimits],
        links: Sequence[LinkSpec],
        *,
        image: str,
        mounts: Sequence[Path],
        label: RunLabel,
        link_backend: str = "auto",
        dilation: float = 1.0,
        env: Mapping[str, str] | None = None,
        network_factory: NetworkFactory | None = None,
        verifier_factory: VerifierFactory | None = None,
        warm_up: Sequence[str] = (),
    ) -> None:
        """Prepare; nothing is made before `up`. `limits` and `links` are those of all devices.

        `work_dir` gets a folder per device; `mounts` are host folders that every device sees
        read-only; `env` is added to every program's variables. `dilation` is for TCP's timers.
        `verifier_factory` makes what measures on fresh devices whether limits and links hold.
        `warm_up` is a program that runs once before the first devices, without limits: what it
        reads of the image is then cached, and charged to none of them.
        """
        self._work_dir = work_dir.resolve()
        self._limits, self._links = tuple(limits), tuple(links)
        self._image = image
        self.label = label
        self._mounts = tuple(path.resolve() for path in mounts)
        self._env = dict(env or {})
        self._make_verifier = verifier_factory
        self._verifier: LimitVerifier | None = None
        self._warm_up = tuple(warm_up)
        self._open_links = network_factory or partial(_open_links, link_backend, dilation)
        self._owner = (os.getuid(), os.getgid()) if os.getuid() else _UNPRIVILEGED
        self._num_ups = 0
        self._daemon: Daemon | None = None
        self._devices: list[DockerDevice] = []
        self.network: Network | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """What it does not limit or emulate."""
        return limit_notes(self._limits)

    def up(self, num_devices: int) -> list[DockerDevice]:
        """Make fresh devices: the first `num_devices`, all or none."""
        self._check(num_devices)
        self.down()
        self._num_ups += 1
        try:
            self._daemon = Daemon()
            version = self._daemon.cgroup_version()
            if self._warm_up:
                self._warm(version)
            limits = self._limits[:num_devices]
            self._devices = [self._make_device(i, lim, version) for i, lim in enumerate(limits)]
            self.network = self._open_links(self._links[:num_devices])
            with ThreadPoolExecutor(_MAX_STARTING, "docker") as pool:
                list(pool.map(DockerDevice.start, self._devices))
            for device in self._devices:
                address = self.network.attach(device.index, device.pid)
                device.connect(address, self.network.backend)
            if self._make_verifier is not None:
                self._verifier = self._make_verifier(self._devices, self.network)
        except BaseException:
            self._down_quietly()
            raise
        return list(self._devices)

    def verify(self, moment: str) -> VerificationReport:
        """Measure whether limits and links hold; memory that this takes at first is not counted."""
        return VerificationReport() if self._verifier is None else self._verifier.verify(moment)

    def fault(self, index: int, kind: str, value: float) -> None:
        """Change a device's link while it is up."""
        if self.network is None:
            raise DeviceError(f"link of device {index}: no devices are up")
        self.network.fault(index, kind, value)

    def down(self) -> None:
        """Stop every program and take all devices away, also after an error. Twice is fine."""
        with ExitStack() as stack:  # the later ones also where one fails
            if self._daemon is not None:
                stack.callback(self._daemon.close)
            if self.network is not None:
                stack.callback(self.network.close)
            self.network = self._daemon = self._verifier = None
            failures = self._remove_devices()
        if failures:
            raise failures[0]

    def _remove_devices(self) -> list[DeviceError]:
        for device in self._devices:
            device.ask_to_end()
        failures: list[DeviceError] = []
        if self._devices:
            with ThreadPoolExecutor(len(self._devices), "docker") as pool:
                failures = [f for f in pool.map(_close, self._devices) if f is not None]
        for index in range(len(self._devices)):
            shutil.rmtree(self._folder(index) / "work", ignore_errors=True)
        self._devices = []
        return failures

    def _down_quietly(self) -> None:
        """After a failure, which is what the user is to see."""
        try:
            self.down()
        except DeviceError as exc:
            log.warning("%s", exc)

    def _check(self, num_devices: int) -> None:
        most = min(len(self._limits), len(self._links))
        if not 1 <= num_devices <= most:
            raise DeviceError(f"docker: {num_devices} devices asked for, 1 to {most} are described")
        swap = sum(limits.swap for limits in self._limits[:num_devices])
        if swap > host_swap_bytes():
            raise DeviceError(
                f"docker: swap of {swap} bytes asked for, this host has {host_swap_bytes()};"
                " `make doctor` says how to make some"
            )
        for path in self._mounts:
            check_readable(path, self._owner)

    def _folder(self, index: int) -> Path:
        return self._work_dir / f"up-{self._num_ups}" / f"device-{index}"

    def _warm(self, cgroup_version: int) -> None:
        self._devices = [self._make_device(0, DeviceLimits(), cgroup_version)]
        self._devices[0].start()
        process = self._devices[0].run(self._warm_up, make_inbox())
        end = process.wait(_WARM_UP_S) or process.stop()
        self._remove_devices()
        self._num_ups += 1  # the next have a folder of their own
        if end.code != 0:
            last = end.log_tail.strip().splitlines()[-1:] or ["it said nothing"]
            raise DeviceError(f"docker: {self._warm_up[0]} to warm up failed: {last[0]}")
        self._warm_up = ()

    def _make_device(self, index: int, limits: DeviceLimits, cgroup_version: int) -> DockerDevice:
        folder = DeviceFolder(self._folder(index), self._owner)
        spec = ContainerSpec(
            index=index,
            name=f"tpi-lab-{index}-{secrets.token_hex(6)}",
            image=self._image,
            user=self._owner,
            limits=limits,
            labels=self.label.labels,
            mounts=[
                *folder.mounts,
                *(mount for i, path in enumerate(self._mounts) for mount in _mounts_of(path, i)),
                *((_ROOT / name, f"{_LAB}/{name}", False) for name in _SOURCES),
            ],
            env={**self._env, **container_environment(limits.threads)},
            disks=self._disks(limits),
            cgroup_version=cgroup_version,
        )
        about: dict[str, object] = {
            "backend": "docker",
            "threads": limits.threads,
            "image": self._image,
            "asked": asdict(limits),
            "link": asdict(self._links[index]),
        }
        if self._daemon is None:
            raise DeviceError("docker: not connected")
        return DockerDevice(spec, Container(self._daemon, spec), folder, about)

    def _disks(self, limits: DeviceLimits) -> list[Disk]:
        """The disks under what a device reads and writes, if their rates are limited."""
        if limits.read_bps is None and limits.write_bps is None:
            return []
        paths = [self._work_dir, *self._mounts]
        return list(dict.fromkeys(disk_of(path) for path in paths))


def _mounts_of(path: Path, number: int) -> list[tuple[Path, str, bool]]:
    """A model folder, and beside it the stamp that spares a device to hash it at every start."""
    inside = f"{_MODELS}/{number}"
    stamp = stamp_path(path)
    stamps = [(stamp, str(stamp_path(Path(inside))), False)] if stamp.is_file() else []
    return [(path, inside, False), *stamps]


def container_environment(threads: int) -> dict[str, str]:
    """Variables of every program in a container."""
    return {
        **device_environment(threads),
        "PYTHONPATH": _LAB,
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": WORK,
        "TMPDIR": TMP,
        # Libraries ask for the user's name, and its number stands in no list.
        "USER": "device",
        "LOGNAME": "device",
    }


def _open_links(backend: str, dilation: float, links: Sequence[LinkSpec]) -> Network:
    # Not the run's id: its repeats, and two harnesses at once, need names of their own.
    label = secrets.token_hex(6)
    return open_network(links, backend=backend, dilation=dilation, label=label)


def _close(device: DockerDevice) -> DeviceError | None:
    try:
        device.close()
    except DeviceError as exc:
        return exc
    return None
