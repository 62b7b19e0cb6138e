"""Devices that are containers, for tests: what to run in them, and what of them is left."""

import contextlib
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import docker

from harness.run.judge import judge
from harness.run.runner import Launch, run_repeat
from results.records.schema import Repeat
from testbed.docker.testbed import DockerTestbed
from testbed.host.label import RunLabel
from testbed.limits.limits import DeviceLimits
from testbed.links.link import LinkSpec
from tests.faults.faulty import program
from tpi.options import ComputeOptions
from tpi.program.process import Exit
from tpi.program.program_session import Deadlines
from tpi.program.spec import Request

_SOCKET = "/var/run/docker.sock"
LIMIT_BYTES = 96 << 20
REQUEST = Request("r0", 4, (1, 2, 3))


def image() -> str:
    """The device image's name."""
    from testbed.image import image_tag

    return str(image_tag())


class NoLinks:
    """Links of devices that never talk to each other."""

    backend = "none"

    def attach(self, index: int, pid: int) -> str:
        """Each has its own loopback."""
        return "127.0.0.1"

    def fault(self, index: int, kind: str, value: float) -> None:
        """There is nothing to disturb."""

    def counters(self) -> dict[str, object]:
        """Nothing was sent."""
        return {}

    def close(self) -> None:
        """There is nothing to take away."""


def model_dir(work_dir: Path) -> Path:
    """A folder that devices may read; these systems do not."""
    path = work_dir / "model"
    path.mkdir(exist_ok=True)
    path.chmod(0o755)
    return path


def make_bed(work_dir: Path, num_devices: int = 1, **options: Any) -> DockerTestbed:
    """A testbed of small devices without links."""
    limits = DeviceLimits(
        cpus=None, threads=1, memory=LIMIT_BYTES, swap=0, read_bps=None, write_bps=None
    )
    found: dict[str, Any] = {
        "image": image(),
        "mounts": [model_dir(work_dir)],
        "label": RunLabel.mine(f"test-{secrets.token_hex(4)}"),
        "network_factory": lambda links: NoLinks(),
    }
    link = LinkSpec(delay_s=0.0, rate_bps=None, loss_frac=0.0, queue_bytes=1 << 20)
    return DockerTestbed(
        work_dir / "bed", [limits] * num_devices, [link] * num_devices, **{**found, **options}
    )


class Seen:
    """A watch that does something as soon as an event of that name has come."""

    def __init__(self, name: str = "", act: Callable[[Sequence[Any]], None] | None = None) -> None:
        self.devices: list[Any] = []
        self._name, self._act = name, act

    def started(self, devices: Sequence[Any]) -> None:
        """Keep the devices."""
        self.devices = list(devices)

    def event(self, event: Any) -> None:
        """Act, once."""
        if event.name == self._name and self._act is not None:
            act, self._act = self._act, None
            act(self.devices)


def run_in(
    bed: DockerTestbed, work_dir: Path, num_devices: int = 1, watch: Seen | None = None,
    token_s: float = 30.0, **options: object,
) -> tuple[list[Exit], Repeat]:  # fmt: skip
    """One repeat of the faulty system: how every program ended, and the verdict."""
    launch = Launch(
        system="fake",
        program=program(**options),
        model_dirs=(model_dir(work_dir),) * num_devices,
        requests=(REQUEST,),
        compute=ComputeOptions(max_tokens=16),
        deadlines=Deadlines(ready_s=30, token_s=token_s, end_s=30, last_words_s=1),
    )
    outcome = run_repeat(launch, bed, watch)
    ends = [end for end in outcome.exits if end is not None]
    assert len(ends) == num_devices
    return ends, judge(outcome, 0, REQUEST.id, REQUEST.new_tokens)


def log_tails(repeat: Repeat) -> list[str]:
    """The last lines of every program."""
    return list(repeat.facts.log_tails)


def peaks(repeat: Repeat) -> list[int]:
    """What every control group charged at most."""
    return [peak or 0 for peak in repeat.peak_memory.cgroup_peak]


def is_daemon_there() -> bool:
    """Whether somebody listens; a daemon that was killed leaves its socket behind."""
    with socket.socket(socket.AF_UNIX) as connection:
        return connection.connect_ex(_SOCKET) == 0


@contextlib.contextmanager
def client() -> Iterator[docker.APIClient]:
    """Docker's own client, for a look from outside."""
    found = docker.APIClient(base_url=f"unix://{_SOCKET}", version="auto")
    try:
        yield found
    finally:
        found.close()


def containers(label: str = "org.tpi-lab.run") -> set[str]:
    """Ids of all containers with a label, running or not."""
    with client() as daemon:
        found = daemon.containers(all=True, filters={"label": label})
        return {str(each["Id"]) for each in found}


def await_none(look: Callable[[], object], timeout_s: float) -> None:
    """Until there is nothing any more.

    Raises:
        TimeoutError: There is.
    """
    deadline = time.monotonic() + timeout_s
    while found := look():
        if time.monotonic() > deadline:
            raise TimeoutError(f"after {timeout_s:g} s there is still {found}")
        time.sleep(0.05)
