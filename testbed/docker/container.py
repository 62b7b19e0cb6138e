"""One device's container: how it is made, what keeps it alive, and how it goes away.

Its first process only reads an input that the harness holds open. When the harness ends, however it
ends, the daemon closes that input, the process ends, the kernel kills everything else in the
container, and the daemon removes it. Programs are execs beside that process.
"""

import contextlib
import logging
import os
import select
import signal
from collections.abc import Mapping, Sequence
from typing import Any

import docker.errors

from testbed.base import DeviceError
from testbed.docker.container_spec import ContainerSpec, container_arguments, limit_differences
from testbed.docker.daemon import Daemon, Stream, daemon_errors
from testbed.host.procfs import session_of
from testbed.limits.cgroup import Cgroup, open_cgroup

log = logging.getLogger(__name__)

_REMOVE_S = 10


class Container:
    """A container that lives as long as this process holds its lease; made by `start`."""

    def __init__(self, daemon: Daemon, spec: ContainerSpec) -> None:
        self._daemon = daemon
        self._spec = spec
        self._where = f"device {spec.index}"
        self._lease: Stream | None = None
        self._handle: int | None = None
        self.id = ""
        self.image_id = ""
        self.pid = 0
        self.cgroup: Cgroup

    def start(self) -> None:
        """Make it, take its lease, start it, check its limits; an error leaves it to `remove`."""
        arguments = container_arguments(self._spec)
        with daemon_errors(f"{self._where}: cannot be made"):
            client = self._daemon.client
            host_config = client.create_host_config(**arguments.pop("host_config"))
            self.id = client.create_container(**arguments, host_config=host_config)["Id"]
            # Before it runs, so that it is held at every moment.
            self._lease = self._daemon.open_stream(
                f"/containers/{self.id}/attach?stream=1&stdin=1", {}
            )
            client.start(self.id)
            state: Mapping[str, Any] = client.inspect_container(self.id)
        self.image_id, self.pid = str(state["Image"]), int(state["State"]["Pid"])
        if not self.pid:
            raise DeviceError(f"{self._where}: its container ended at once: {state['State']}")
        self._handle = os.pidfd_open(self.pid)
        self.cgroup = open_cgroup(self.pid)
        if wrong := limit_differences(self._spec, self.cgroup):
            raise DeviceError(f"{self._where}: limits do not hold: {'; '.join(wrong)}")

    def open_exec(self, argv: Sequence[str], work_dir: str) -> tuple[str, Stream]:
        """Start a program in it; gives Docker's id of it and its input and output."""
        with daemon_errors(f"{self._where}: cannot start {argv[0]}"):
            made = self._daemon.client.exec_create(
                self.id, list(argv), stdin=True, tty=False, workdir=work_dir
            )
        stream = self._daemon.open_stream(
            f"/exec/{made['Id']}/start", {"Detach": False, "Tty": False}
        )
        return str(made["Id"]), stream

    def exec_state(self, exec_id: str) -> tuple[int, int | None] | None:
        """(host process number or 0, exit status once it ended); None if Docker forgot it."""
        try:
            with daemon_errors(f"{self._where}: inspect"):
                state: Mapping[str, Any] = self._daemon.client.exec_inspect(exec_id)
        except DeviceError as exc:
            if isinstance(exc.__cause__, docker.errors.NotFound):
                return None
            raise
        # At first it neither runs nor has a status: the daemon answers before it starts it.
        return int(state["Pid"]), None if state["Running"] else state["ExitCode"]

    def signal(self, leader: int, number: int) -> None:
        """Send a signal to all of a program's session that runs in here; gone is fine."""
        with contextlib.suppress(DeviceError):
            for pid in self.cgroup.pids():
                if session_of(pid) == leader:
                    _signal(pid, leader, number)

    def open_handle(self, pid: int) -> int | None:
        """A handle of a process in here, to wait for its end; None if it has ended."""
        with contextlib.suppress(DeviceError, OSError):
            handle = os.pidfd_open(pid)
            if pid in self.cgroup.pids():
                return handle
            os.close(handle)
        return None

    def thaw(self) -> None:
        """Let a paused container go on: nothing in it can end before."""
        with contextlib.suppress(DeviceError), daemon_errors(self._where):
            self._daemon.client.unpause(self.id)

    def remove(self) -> None:
        """End everything in it and have it removed. Twice is fine.

        Raises:
            DeviceError: It is still there, and something runs in it.
        """
        if not self.id:
            return
        # First without the daemon, which may be gone.
        if self._lease is not None:
            with contextlib.suppress(OSError):
                self._lease.hang_up()
            self._lease.close()
        if self._handle is not None:
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(self._handle, signal.SIGKILL)
        self._await_removal()
        if self._handle is not None:
            os.close(self._handle)
        self._handle, self.id = None, ""

    def _await_removal(self) -> None:
        try:
            with daemon_errors(f"{self._where}: cannot be removed"):
                client = self._daemon.client
                if self.pid and not client.inspect_container(self.id)["State"]["Paused"]:
                    with contextlib.suppress(docker.errors.APIError, OSError):
                        client.wait(self.id, timeout=_REMOVE_S, condition="removed")
                with contextlib.suppress(docker.errors.NotFound):
                    client.remove_container(self.id, force=True, v=True)
        except DeviceError as exc:
            if isinstance(exc.__cause__, docker.errors.NotFound):
                return
            if not self._has_ended():
                raise
            log.warning("%s; nothing runs in it, the next start removes it", exc)

    def _has_ended(self) -> bool:
        """Whether its first process, and so all of it, ends within some seconds."""
        if self._handle is None:
            return True
        waiting = select.poll()
        waiting.register(self._handle, select.POLLIN)
        return bool(waiting.poll(_REMOVE_S * 1000))


def _signal(pid: int, leader: int, number: int) -> None:
    """Send a signal, but not if the number has been given to another process meanwhile."""
    try:
        handle = os.pidfd_open(pid)
    except OSError:
        return
    try:
        if session_of(pid) == leader:
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(handle, number)
    finally:
        os.close(handle)
