"""What the doctor says of machines that have everything, lack something, or are broken."""

import io
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from testbed.base import DeviceError
from testbed.doctor.checks import Machine
from testbed.doctor.doctor import Check, can_run, checks, main, show
from tests.testbed.cgroups import make_v1, make_v2, write
from tpi.errors import ConfigError

ROOT = Path(__file__).parents[3]
WORKS: dict[str, str | None] = {"netem": None, "switch-c": None, "switch-python": None}
NO_NETEM = "netem: tc -batch -: Error: Specified qdisc kind is unknown.\nCommand failed"


class FakeMachine(Machine):
    """A machine that has everything but what a test takes away."""

    about: Mapping[str, Any] = {"Version": "27.1", "ApiVersion": "1.46", "MemoryLimit": True}
    installed = True
    root = True
    image_problem: str | None = None
    link_problems: Mapping[str, str | None] = WORKS
    gcc: Path | None = Path("/usr/bin/gcc-12")
    swap_found: tuple[int, int, str | None] = (2 << 30, 1 << 30, None)
    num_cores = (8, 8)
    controls = ("reno", "cubic")
    dead: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    dead_files: tuple[Path, ...] = ()

    def __init__(self) -> None:
        super().__init__(Path("/data/weights"))

    def is_docker_installed(self) -> bool:
        return self.installed

    def daemon(self) -> Mapping[str, Any]:
        return self.about

    def image(self) -> tuple[str, str | None]:
        return "tpi-lab-device:0123456789ab", self.image_problem

    def dead_containers(self) -> list[str]:
        return list(self.dead)

    def old_images(self) -> list[str]:
        return list(self.images)

    def dead_swap(self) -> list[Path]:
        return list(self.dead_files)

    def cgroup(self) -> str:
        return "version 2: cpu, memory, io"

    def links(self) -> Mapping[str, str | None]:
        return self.link_problems

    def compiler(self) -> Path | None:
        return self.gcc

    def is_root(self) -> bool:
        return self.root

    def swap(self) -> tuple[int, int, str | None]:
        return self.swap_found

    def disk(self) -> str:
        return "/dev/sda (8:0)"

    def cores(self) -> tuple[int, int]:
        return self.num_cores

    def memory(self) -> int:
        return 12 << 30

    def congestion_controls(self) -> list[str]:
        return list(self.controls)


def raising(exc: Exception) -> Callable[..., Any]:
    def raise_it(*args: object) -> Any:
        raise exc

    return raise_it


def machine(**changes: Any) -> FakeMachine:
    found = FakeMachine()
    for name, value in changes.items():
        setattr(found, name, value)
    return found


def caused_by(exc: DeviceError, cause: Exception) -> DeviceError:
    exc.__cause__ = cause
    return exc


def not_ok(found: list[Check]) -> list[tuple[str, str, str]]:
    return [(check.name, check.state, check.mend) for check in found if check.state != "ok"]


NO_DAEMON = DeviceError("docker: the Docker daemon does not answer")


def test_a_machine_with_everything():
    found = checks(machine())
    assert not_ok(found) == []
    assert can_run(found)
    assert [check.name for check in found] == [
        "Docker", "device image", "control groups", "root", "link netem", "link switch-c",
        "link switch-python", "C compiler", "TCP", "swap", "disk of weights", "cores", "memory",
        "leftovers",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"daemon": raising(NO_DAEMON), "installed": False},
            ("Docker", "missing", "apt-get install docker.io"),
        ),
        (
            {"daemon": raising(NO_DAEMON)},
            ("Docker", "missing", "systemctl start docker, or as root: dockerd"),
        ),
        (
            {"daemon": raising(caused_by(DeviceError("no"), PermissionError()))},
            ("Docker", "missing", "usermod -aG docker $USER, then log in again; or run as root"),
        ),
        (
            {"daemon": raising(ConfigError("the daemon at tcp://x is not this machine's"))},
            ("Docker", "missing", "unset DOCKER_HOST"),
        ),
        (
            {"about": {"Version": "1", "SecurityOptions": ["name=rootless"]}},
            ("Docker", "missing", "install Docker Engine as root: apt-get install docker.io"),
        ),
        ({"about": {"CpuCfsQuota": False}}, ("Docker", "missing", "")),
        ({"image_problem": "it is not there"}, ("device image", "missing", "make image")),
        ({"root": False}, ("root", "note", "sudo -E make doctor")),
        (
            {"link_problems": {**WORKS, "netem": NO_NETEM}},
            ("link netem", "note", "modprobe sch_netem, where the kernel comes with it"),
        ),
        ({"link_problems": {**WORKS, "switch-c": "no"}}, ("link switch-c", "note", "")),
        ({"link_problems": dict.fromkeys(WORKS, "run as root")}, ("links", "missing", "")),
        ({"gcc": None}, ("C compiler", "note", "apt-get install gcc libc6-dev")),
        ({"controls": ("bbr",)}, ("TCP", "missing", "")),
        ({"swap_found": (0, 0, "not accounted")}, ("swap", "note", "")),
        ({"disk": raising(ConfigError("tmpfs"))}, ("disk of weights", "note", "")),
        ({"num_cores": (8, 2)}, ("cores", "note", "")),
        ({"dead": ("tpi-lab-0-abc",)}, ("leftovers", "note", "")),
        ({"dead_files": (Path("/w/x.swap"),)}, ("leftovers", "note", "")),
        ({"images": ("lab:old",)}, ("old images", "note", "docker rmi lab:old")),
    ],
)  # fmt: skip
def test_what_is_missing_is_named_with_what_mends_it(changes, expected):
    found = checks(machine(**changes))
    assert not_ok(found) == [expected]
    assert can_run(found) is (expected[1] != "missing")


def test_without_a_daemon_nothing_is_said_of_what_it_knows():
    gone = raising(NO_DAEMON)
    broken = machine(daemon=gone, image=gone, dead_containers=gone, old_images=gone)
    found = checks(broken)
    assert [row[:2] for row in not_ok(found)] == [
        ("Docker", "missing"),
        ("device image", "missing"),
        ("leftovers", "note"),
    ]


def test_swap_that_could_be_made_is_no_lack_for_root_only():
    assert not_ok(checks(machine(swap_found=(0, 0, None)))) == []
    found = not_ok(checks(machine(swap_found=(0, 0, None), root=False)))
    (mend,) = (mend for name, _, mend in found if name == "swap")
    assert mend.endswith("&& swapon /data/weights/swapfile")


@pytest.mark.parametrize(
    "name",
    ["daemon", "image", "cgroup", "is_root", "links", "compiler", "congestion_controls", "swap",
     "disk", "cores", "memory", "dead_swap", "dead_containers"],
)  # fmt: skip
@pytest.mark.parametrize(
    "exc", [DeviceError("a\nb"), FileNotFoundError(2, "no"), ValueError("x"), StopIteration()]
)
def test_nothing_that_is_broken_stops_it(name, exc):
    found = checks(machine(**{name: raising(exc)}))
    assert len(found) >= 12
    assert all("\n" not in check.found for check in found)


def text_of(found: list[Check], width: int = 80) -> str:
    out = io.StringIO()
    show(found, Console(file=out, width=width, highlight=False))
    return out.getvalue()


def test_at_80_columns_only_commands_are_longer():
    changes = {"link_problems": {**WORKS, "netem": NO_NETEM, "switch-c": "word " * 30}}
    found = checks(machine(**changes, swap_found=(0, 0, None), root=False, image_problem="x"))
    text = text_of(found)
    table, _, rest = text.partition("What would mend it:")
    assert all(len(line) <= 80 for line in table.splitlines())
    assert "  device image: make image\n" in rest
    assert "mkswap /data/weights/swapfile && swapon" in rest
    assert rest.endswith(
        "Docker testbeds cannot run here (missing: device image).\n"
        "Plain processes can (testbed=local): they need nothing of this and limit nothing.\n"
    )


def test_brackets_are_no_markup():
    assert "[bold]x[/]" in text_of([Check("swap", "note", "[bold]x[/]", "[red]y")])


def test_a_report_of_a_sound_machine_ends_with_that():
    assert text_of(checks(machine())).endswith(
        "Docker testbeds can run here (testbed=klonet and others).\n"
    )


def test_this_machine_is_looked_at_quickly_whatever_is_broken(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nobody.sock")
    begin_s = time.monotonic()
    assert main([str(tmp_path)]) == 1
    assert time.monotonic() - begin_s < 10
    out = capsys.readouterr().out
    assert "Docker testbeds cannot run here" in out
    assert "Traceback" not in out


@pytest.mark.slow
def test_a_daemon_that_hangs_is_waited_for_once(tmp_path, monkeypatch):
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(f"{tmp_path}/hangs.sock")
        silent.listen()
        monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/hangs.sock")
        begin_s = time.monotonic()
        found = Machine(tmp_path)
        for look in (found.daemon, found.image, found.dead_containers):
            with pytest.raises(DeviceError, match="does not answer"):
                look()
        assert time.monotonic() - begin_s < 8


def test_a_daemon_elsewhere_is_none(tmp_path, monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:1")
    with pytest.raises(ConfigError, match="not this machine's"):
        Machine(tmp_path).daemon()


@pytest.mark.parametrize("make", [make_v1, make_v2])
def test_control_groups_of_fake_trees(tmp_path, make):
    make(tmp_path, pid=os.getpid())
    controllers = "cpuset cpu io memory pids\n"
    write(tmp_path / "sys/fs/cgroup/cgroup.controllers", controllers)
    words = Machine(tmp_path, tmp_path).cgroup()
    assert words.startswith("version 1: memory" if make is make_v1 else "version 2: cpuset, cpu")


def test_version_2_without_a_controller_is_an_error(tmp_path):
    make_v2(tmp_path, pid=os.getpid())
    write(tmp_path / "sys/fs/cgroup/cgroup.controllers", "cpu memory\n")
    with pytest.raises(ConfigError, match="version 2 without io"):
        Machine(tmp_path, tmp_path).cgroup()


def test_files_of_a_fake_host(tmp_path):
    write(tmp_path / "proc/meminfo", "MemTotal: 9 kB\nMemAvailable:  2048 kB\n")
    control = "proc/sys/net/ipv4/tcp_available_congestion_control"
    write(tmp_path / control, "reno bbr\n")
    write(tmp_path / "proc/swaps", "Filename Type Size Used Priority\n/dev/a partition 2 1 -2\n")
    found = Machine(tmp_path / "not/there/yet", tmp_path)
    assert found.memory() == 2 << 20
    assert found.congestion_controls() == ["reno", "bbr"]
    assert found.swap() == (2048, 1024, None)
    with pytest.raises(ConfigError, match="no single disk"):
        found.disk()


@pytest.mark.docker
@pytest.mark.timeout(60)
def test_here_docker_testbeds_can_run():
    begin_s = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "harness.lab", "doctor"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stderr == ""
    assert "Docker testbeds can run here" in done.stdout
    assert done.returncode == 0
    assert time.monotonic() - begin_s < 5
