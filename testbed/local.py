"""Plain processes on this machine: a testbed that needs nothing and limits nothing, and says so.

Each program gets its own session and process group, so that Ctrl-C reaches only the harness and
whatever a program starts ends with it. Two threads serve a process: one cuts its output into
lines, one waits for its end, ends what is left of its group and reaps it. Only process groups
whose leader was started here and is not yet reaped are ever signalled, so no number is reused.
"""

import contextlib
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from testbed.base import MAX_LINE_BYTES, DeviceError, Exit, Inbox, Meters, Output
from testbed.procfs import PeakSampler, oom_kills

_ROOT = Path(__file__).resolve().parent.parent
_LOG_TAIL_BYTES = 4096
# A killed process still has to give back its memory, some GiB of it.
_KILL_S = 30.0
_LOOPBACK = "127.0.0.1"
NOTES = (
    "local: plain processes on one machine; no CPU, memory, disk or link limit is enforced",
    "local: devices share this machine's cores, memory, disk and page cache",
)


class LocalProcess:
    """A program in its own process group; see `testbed.base.Process`."""

    def __init__(
        self, device: int, argv: Sequence[str], inbox: Inbox, env: Mapping[str, str], work_dir: Path
    ) -> None:
        self._device = device
        self._inbox = inbox
        self._log = work_dir / "stderr.log"
        self._lock = threading.Lock()
        self._reaped = False
        self._stopping = False
        self._ended = threading.Event()
        self._exit: Exit | None = None
        self._oom_kills = oom_kills()
        self.start_ns = time.monotonic_ns()
        try:
            with self._log.open("wb") as log:
                self._popen = subprocess.Popen(
                    list(argv),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    env=dict(env),
                    cwd=work_dir,
                    start_new_session=True,
                    bufsize=0,
                )
        except OSError as exc:
            raise DeviceError(f"device {device}: cannot start {argv[0]}: {exc}") from exc
        self._reader = threading.Thread(target=self._read, name=f"stdout-{device}", daemon=True)
        self._waiter = threading.Thread(target=self._await_end, name=f"exit-{device}", daemon=True)
        self._reader.start()
        self._waiter.start()

    @property
    def pid(self) -> int:
        """Process id, also the id of its group; for fault tests and the meter."""
        return self._popen.pid

    def send(self, line: str) -> None:
        """Write one line to its standard input; nothing happens if it has ended."""
        if self._popen.stdin is not None and not self._popen.stdin.closed:
            with contextlib.suppress(OSError):
                self._popen.stdin.write(line.encode() + b"\n")

    def release(self) -> None:
        """Close its standard input: its lease ends, and it should end by itself."""
        if self._popen.stdin is not None:
            with contextlib.suppress(OSError):
                self._popen.stdin.close()

    def wait(self, timeout_s: float) -> Exit | None:
        """Wait for its end; None if it still runs after `timeout_s`."""
        self._ended.wait(timeout_s)
        return self._exit

    @property
    def running(self) -> bool:
        """Whether it was not yet reaped."""
        return not self._reaped

    def ask_to_end(self) -> None:
        """Close its input and terminate it, without waiting."""
        self._stopping = True
        self.release()
        self.signal(signal.SIGTERM)
        # A paused process would keep its SIGTERM waiting.
        self.signal(signal.SIGCONT)

    def stop(self, grace_s: float = 2.0) -> Exit:
        """End it: close its input, terminate, after `grace_s` kill, and reap. Twice is fine.

        Raises:
            DeviceError: The kernel does not let it go (it hangs in a device's driver).
        """
        if not self._ended.is_set():
            self.ask_to_end()
            self._ended.wait(grace_s)
            self.signal(signal.SIGKILL)
            self._ended.wait(_KILL_S)
        if self._exit is None:
            raise DeviceError(f"device {self._device}: process {self.pid} cannot be killed")
        return self._exit

    def signal(self, number: int) -> None:
        """Send a signal to its process group; nothing happens once it was reaped."""
        with self._lock:
            if not self._reaped:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.pid, number)

    def _read(self) -> None:
        stdout = self._popen.stdout
        if stdout is None:
            return
        pending = b""
        skipping = False
        while data := os.read(stdout.fileno(), MAX_LINE_BYTES):
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                if not skipping:
                    self._put(line)
                skipping = False
            if len(pending) > MAX_LINE_BYTES:
                if not skipping:
                    self._put(pending)
                pending, skipping = b"", True
        if pending and not skipping:
            self._put(pending)
        stdout.close()

    def _put(self, line: bytes) -> None:
        output = Output(self._device, line[:MAX_LINE_BYTES], truncated=len(line) > MAX_LINE_BYTES)
        # While stopping, what does not fit is dropped: nobody reads the inbox any more.
        while not self._stopping:
            with contextlib.suppress(queue.Full):
                self._inbox.put(output, timeout=0.2)
                return
        with contextlib.suppress(queue.Full):
            self._inbox.put_nowait(output)

    def _await_end(self) -> None:
        # Without reaping: as long as the leader is a zombie, its group's number stays ours.
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        t_ns, stopped = time.monotonic_ns(), self._stopping
        with self._lock:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
            code = self._popen.wait()
            self._reaped = True
        oom = code == -signal.SIGKILL and not stopped and oom_kills() > self._oom_kills
        # A descendant that left the group may hold the pipe open; its output is not waited for.
        self._reader.join(timeout=1.0)
        while self._reader.is_alive() and self._inbox.full() and not self._stopping:
            self._reader.join(timeout=0.2)
        self._exit = Exit(code, stopped, oom, t_ns, self._log_tail())
        self._ended.set()
        self.release()
        self._put_exit(self._exit)

    def _put_exit(self, end: Exit) -> None:
        while True:
            with contextlib.suppress(queue.Full):
                self._inbox.put(Output(self._device, exit=end), timeout=0.2)
                return
            if self._stopping:
                return

    def _log_tail(self) -> str:
        with self._log.open("rb") as log:
            log.seek(max(0, self._log.stat().st_size - _LOG_TAIL_BYTES))
            return log.read(_LOG_TAIL_BYTES).decode("utf-8", "replace")


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
        with socket.socket() as probe:
            probe.bind((_LOOPBACK, 0))
            return int(probe.getsockname()[1])

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
        process = LocalProcess(self.index, argv, inbox, self._env, work_dir)
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
            if process.running:
                process.ask_to_end()

    def _running_pids(self) -> list[int]:
        return [p.pid for p in self._processes if p.running]


class LocalTestbed:
    """Devices that are plain processes of this machine; see `testbed.base.Testbed`."""

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

    def down(self) -> None:
        """Stop every program and forget the devices. Twice is fine."""
        devices, self._devices = self._devices, []
        for device in devices:
            device.ask_to_end()
        for device in devices:
            device.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.down()


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
        "PYTHONPATH": str(_ROOT),
    }
