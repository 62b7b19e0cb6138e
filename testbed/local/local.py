"""Plain processes on this machine: a testbed that needs nothing and limits nothing, and says so.

Each program gets its own session and process group (`tpi/program/local_process.py`), so that Ctrl-C
reaches only the harness and whatever a program starts ends with it.
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from testbed.base import DeviceError, Meters, Testbed, VerificationReport
from testbed.host.procfs import PeakSampler
from tpi.errors import map_errors
from tpi.program.local_process import LocalProcess, free_port
from tpi.program.process import Inbox

_ROOT = Path(__file__).resolve().parents[2]
_LOOPBACK = "127.0.0.1"
NOTES = (
    "local: plain processes on one machine; no CPU, memory, disk or link limit is enforced",
    "local: devices share this machine's cores, memory, disk and page cache",
)


class LocalDevice:
    """A share of this machine by name only; see `testbed.base.Device`."""

    address = _LOOPBACK
    python = sys.executable

    def __init__(self, index: int, work_dir: Path, threads: int, env: Mapping[str, str]) -> None:
        self.index = index
        self._work_dir = work_dir
        self._threads = threads
        self._env = {**env, **device_environment(threads)}
        self._processes: list[LocalProcess] = []
        self._sampler = PeakSampler(self._running_pids)
        work_dir.mkdir(parents=True, exist_ok=True)
        self._sampler.start()

    def free_port(self) -> int:
        """A TCP port of the loopback that nobody listens on at the moment."""
        return free_port()

    def path_of(self, host_path: Path) -> str:
        """The same path: a local device sees everything."""
        return str(host_path.resolve())

    def run(
        self, argv: Sequence[str], inbox: Inbox, spec: Mapping[str, object] | None = None
    ) -> LocalProcess:
        """Start a program in a work folder of its own below the device's."""
        work_dir = self._work_dir / f"program-{len(self._processes)}"
        work_dir.mkdir(parents=True, exist_ok=True)
        if spec is not None:
            path = work_dir / "spec.json"
            path.write_text(json.dumps(spec), encoding="utf-8")
            argv = [*argv, str(path)]
        with map_errors({OSError: DeviceError}, f"device {self.index}: cannot start {argv[0]}"):
            process = LocalProcess(
                self.index, argv, inbox, work_dir / "stderr.log", self._env, work_dir
            )
        self._processes.append(process)
        return process

    def meter(self) -> Meters:
        """Peaks so far of everything that was started on this device."""
        self._sampler.sample()
        words = {"cgroup_peak": "not limited"}
        if not self._processes:
            return Meters(words=words)
        return Meters(
            rss_hwm=self._sampler.rss_hwm,
            anon_peak=self._sampler.anon_peak,
            num_samples=self._sampler.num_samples,
            words=words,
        )

    def facts(self) -> dict[str, object]:
        """Threads it is told to use, and that nothing is limited."""
        return {"backend": "local", "threads": self._threads, "limits": "none"}

    def close(self) -> None:
        """Stop everything that was started on this device."""
        self._sampler.close()
        for process in self._processes:
            process.stop()

    def ask_to_end(self) -> None:
        """Tell everything that was started on this device to end, without waiting."""
        for process in self._processes:
            process.ask_to_end()

    def _running_pids(self) -> list[int]:
        return [p.pid for p in self._processes if p.running]


class LocalTestbed(Testbed):
    """Devices that are plain processes of this machine."""

    name = "local"
    notes = NOTES

    def __init__(
        self, work_dir: Path, threads: int = 1, env: Mapping[str, str] | None = None
    ) -> None:
        """Prepare; nothing is made before `up`.

        Args:
            work_dir: Gets one folder per device with specs and logs.
            threads: Compute threads each device's programs are told to use.
            env: Environment to start from; this process's own unless given.
        """
        self._work_dir = work_dir
        self._threads = threads
        self._env = dict(os.environ) if env is None else dict(env)
        self._devices: list[LocalDevice] = []

    def up(self, num_devices: int) -> list[LocalDevice]:
        """Make fresh devices."""
        if num_devices < 1:
            raise DeviceError(f"at least one device is needed, got {num_devices}")
        self.down()
        self._devices = [
            LocalDevice(i, self._work_dir / f"device-{i}", self._threads, self._env)
            for i in range(num_devices)
        ]
        return list(self._devices)

    def fault(self, index: int, kind: str, value: float) -> None:  # noqa: ARG002 - the protocol's
        """Refuse: plain processes talk over loopback."""
        raise DeviceError(f"link of device {index}: plain processes have none to {kind}")

    def verify(self, moment: str) -> VerificationReport:  # noqa: ARG002 - the protocol's
        """Nothing is limited, so there is nothing to prove."""
        return VerificationReport()

    def down(self) -> None:
        """Stop every program and forget the devices. Twice is fine."""
        devices, self._devices = self._devices, []
        for device in devices:
            device.ask_to_end()
        for device in devices:
            device.close()


def device_environment(threads: int) -> dict[str, str]:
    """Variables every program of a device gets: its threads, no network, this source tree."""
    return {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
        # One that crashes, or hangs and is sent SIGABRT, writes to its log where it was.
        "PYTHONFAULTHANDLER": "1",
        "PYTHONPATH": str(_ROOT),
    }
