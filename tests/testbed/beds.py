"""Testbeds for tests: containers with the device image and, unless asked, no links."""

import contextlib
import json
import socket
import threading
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from testbed.base import DeviceError
from testbed.docker.daemon import Daemon
from testbed.docker.testbed import DockerTestbed
from testbed.host.label import RunLabel
from testbed.limits.limits import DeviceLimits
from testbed.links.link import LinkSpec


class NoLinks:
    """A network of nothing: every device has only its own loopback."""

    backend = "none"

    def __init__(
        self, fails_at: int | None = None, failure: type[BaseException] = DeviceError
    ) -> None:
        self.attached: list[tuple[int, int]] = []
        self.num_closed = 0
        self.problem = ""
        self._fails_at, self._failure = fails_at, failure

    def attach(self, index: int, pid: int) -> str:
        if index == self._fails_at:
            raise self._failure(f"link {index} cannot be made")
        self.attached.append((index, pid))
        return "127.0.0.1"

    def fault(self, index: int, kind: str, value: float) -> None:
        raise NotImplementedError

    def verify(self) -> None:
        if self.problem:
            raise DeviceError(self.problem)

    def counters(self) -> dict[str, object]:
        return {"packets": 0}

    def close(self) -> None:
        self.num_closed += 1


def make_bed(
    work_dir: Path,
    limits: DeviceLimits = DeviceLimits(),  # noqa: B008 - a frozen value
    num_devices: int = 4,
    links: NoLinks | None = None,
    mounts: Sequence[Path] = (),
    **more: Any,
) -> DockerTestbed:
    """A Docker testbed whose containers carry a run id of their own."""
    network = links or NoLinks()
    options: dict[str, Any] = {
        "image": device_image(),
        "label": RunLabel.mine(f"test-{uuid.uuid4().hex[:8]}"),
        "network_factory": lambda _: network,
        "mounts": mounts,
    }
    return DockerTestbed(
        work_dir, [limits] * num_devices, [LinkSpec()] * num_devices, **{**options, **more}
    )


class DaemonProxy:
    """Stands between the SDK and the daemon, and can go away as a daemon does."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(path))
        self._server.listen()
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def stop(self) -> None:
        """End all connections and take no more."""
        self.path.unlink()
        for connection in [self._server, *self._open]:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, far = self._server.accept()[0], socket.socket(socket.AF_UNIX)
                far.connect("/var/run/docker.sock")
                self._open += [near, far]
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=_pump, args=(source, sink), daemon=True).start()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


def device_image() -> str:
    """The image that `make image` builds."""
    from testbed.image import image_tag  # asks for its inputs' hashes: only where it is needed

    return str(image_tag())


def containers_of(label: RunLabel) -> list[str]:
    """Ids of all containers of a run, whatever state they are in."""
    return list_containers(f"org.tpi-lab.run={label.run_id}")


def list_containers(label: str) -> list[str]:
    daemon = Daemon()
    try:
        found = daemon.client.containers(all=True, filters={"label": label})
        return [str(container["Id"]) for container in found]
    finally:
        daemon.close()


def inspect(container_id: str) -> Any:
    """What Docker says about a container, as it says it."""
    daemon = Daemon()
    try:
        return json.loads(json.dumps(daemon.client.inspect_container(container_id)))
    finally:
        daemon.close()
