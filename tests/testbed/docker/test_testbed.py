"""Real containers: limits hold, ends are named, and nothing is left behind, whatever happens."""

import json
import os
import select
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from testbed.base import DeviceError, VerificationReport
from testbed.docker.daemon import Daemon
from testbed.docker.device import DockerDevice
from testbed.docker.testbed import DockerTestbed
from testbed.host.label import RunLabel
from testbed.limits.limits import DeviceLimits
from testbed.links.link import LinkSpec
from testbed.links.network import Network
from testbed.verify.tolerances import Expected, ProbeReport
from testbed.verify.verifier import LimitVerifier
from tests.testbed.beds import DaemonProxy, NoLinks, containers_of, device_image, inspect, make_bed
from tests.testbed.programs import OBEDIENT, is_gone, read_line, read_to_exit, start
from tpi.errors import ConfigError
from tpi.program.process import make_inbox

MIB = 1 << 20
LIMITS = DeviceLimits(cpus=0.5, memory=96 * MIB, read_bps=32 * MIB, write_bps=16 * MIB)
EATS = "x = bytearray(300 << 20); print('full')"
SPINS = (
    "import time\n"
    "begin, used = time.monotonic(), time.process_time()\n"
    "while time.monotonic() < begin + 1.5: pass\n"
    "print((time.process_time() - used) / (time.monotonic() - begin))"
)
READS_DIRECT = (
    "import mmap, os, sys, time\n"
    "buffer = mmap.mmap(-1, 4 << 20)\n"
    "fd = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT)\n"
    "total, begin = 0, time.monotonic()\n"
    "while count := os.preadv(fd, [buffer], total): total += count\n"
    "print(total / (time.monotonic() - begin))"
)
READS = (
    "with open('{path}', 'rb', buffering=0) as file:\n"
    "    print(sum(len(piece) for piece in iter(lambda: file.read(1 << 20), b'')))"
)
ABOUT_ITSELF = (
    "import json, os\n"
    "def tries(path):\n"
    "    try: open(path, 'w').close()\n"
    "    except OSError as exc: return exc.strerror\n"
    "    return 'ok'\n"
    "status = dict(l.split(':', 1) for l in open('/proc/self/status').read().splitlines())\n"
    "paths = ['/x', '/etc/x', '/lab/tpi/x', '/models/0/x', '/specs/x', '/work/x', '/tmp/x']\n"
    "print(json.dumps({'ids': [os.getuid(), os.getgid(), os.getgroups()],\n"
    "    'caps': status['CapEff'].strip() + status['CapBnd'].strip(),\n"
    "    'no_new_privs': status['NoNewPrivs'].strip(), 'seccomp': status['Seccomp'].strip(),\n"
    "    'writes': {p: tries(p) for p in paths}, 'links': os.listdir('/sys/class/net'),\n"
    "    'shm': os.statvfs('/dev/shm').f_blocks * os.statvfs('/dev/shm').f_frsize,\n"
    "    'socket': os.path.exists('/var/run/docker.sock')}))"
)


@pytest.fixture
def inbox():
    return make_inbox()


@pytest.fixture
def bed(tmp_path):
    with make_bed(tmp_path, LIMITS) as bed:
        yield bed


@pytest.fixture
def device(bed):
    return bed.up(1)[0]


@pytest.fixture
def daemon():
    daemon = Daemon()
    yield daemon
    daemon.close()


def write_block(path: Path) -> None:
    """64 MiB that lie on the disk and not in the page cache."""
    with path.open("wb") as file:
        file.write(os.urandom(64 * MIB))
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def count(folder: str) -> int:
    return len(list(Path(folder).iterdir()))


def await_gone(label: RunLabel, timeout_s: float) -> bool:
    """Whether a run's containers are gone within some time."""
    never = select.poll()
    deadline = time.monotonic() + timeout_s
    while containers_of(label):
        if time.monotonic() > deadline:
            return False
        never.poll(50)
    return True


@pytest.mark.docker
class TestLimits:
    def test_in_force_are_those_asked_for(self, bed, device):
        limits = device.facts()["limits"]
        assert (limits["memory_bytes"], limits["swap_bytes"]) == (96 * MIB, 0)
        assert (limits["cpu_quota_us"], limits["cpu_period_us"]) == (5000, 10000)
        assert list(limits["disks"].values()) == [
            {"read_bps": 32 * MIB, "write_bps": 16 * MIB},
        ]
        bed.down()
        assert device.facts()["limits"] == limits
        assert device.facts()["counters"]["oom_kills"] == 0

    def test_nothing_is_limited_unasked(self, tmp_path):
        with make_bed(tmp_path) as bed:
            limits: Any = bed.up(1)[0].facts()["limits"]
            assert (limits["memory_bytes"], limits["cpus"], limits["disks"]) == (None, None, {})
            assert "docker: CPU not limited" in bed.notes

    @pytest.mark.parametrize("cpus", [0.5, 0.1])
    @pytest.mark.slow
    def test_share_of_the_cpu(self, tmp_path, inbox, cpus):
        with make_bed(tmp_path, DeviceLimits(cpus=cpus)) as bed:
            start(bed.up(1)[0], inbox, SPINS)
            share = float(read_line(inbox))
        # Less only where others load the host.
        assert 0.5 * cpus < share < 1.1 * cpus

    @pytest.mark.slow
    def test_rate_of_the_disk(self, tmp_path, inbox):
        model = tmp_path / "model"
        model.mkdir()
        write_block(model / "block")
        with make_bed(tmp_path / "work", LIMITS, mounts=[model]) as bed:
            device = bed.up(1)[0]
            path = device.path_of(model / "block")
            device.run([device.python, "-S", "-c", READS_DIRECT, path], inbox)
            rate_bps = float(read_line(inbox))
            disks: Any = device.facts()["counters"]["disk_bytes"]  # type: ignore[index]
        assert rate_bps == pytest.approx(32 * MIB, rel=0.1)
        (read_bytes,) = [disk["read"] for disk in disks.values()]
        # The interpreter's own files come from the same disk where the cache has lost them.
        assert 64 * MIB <= read_bytes < 72 * MIB

    def test_swap_that_the_host_does_not_have_is_refused(self, tmp_path):
        limits = DeviceLimits(memory=96 * MIB, swap=1 << 50)
        with make_bed(tmp_path, limits) as bed, pytest.raises(DeviceError, match="swap of"):
            bed.up(1)

    def test_disk_rate_on_what_is_no_disk_is_refused(self, inbox):
        with (
            make_bed(Path("/dev/shm") / f"tpi-test-{uuid.uuid4().hex}", LIMITS) as bed,
            pytest.raises(ConfigError, match="no single disk is under it"),
        ):
            bed.up(1)


@pytest.mark.docker
class TestMemory:
    def test_program_that_takes_too_much_is_out_of_memory(self, bed, device, inbox):
        start(device, inbox, EATS)
        _, end = read_to_exit(inbox)
        assert (end.code, end.oom, end.host_oom, end.stopped) == (-9, True, False, False)
        # The device is still there and can be used.
        start(device, inbox, "print('again')")
        lines, end = read_to_exit(inbox)
        assert (lines, end.oom) == ([b"again"], False)
        assert device.meter().cgroup_peak == 96 * MIB

    def test_so_is_one_whose_child_does_and_that_ends_well(self, device, inbox):
        program = (
            "import subprocess, sys\n"
            f"done = subprocess.run([sys.executable, '-S', '-c', {EATS!r}])\n"
            "print(done.returncode)"
        )
        start(device, inbox, program)
        lines, end = read_to_exit(inbox)
        assert (lines, end.code, end.oom) == ([b"-9"], 0, True)

    def test_reading_much_is_not_out_of_memory(self, tmp_path, inbox):
        model = tmp_path / "model"
        model.mkdir()
        write_block(model / "block")
        with make_bed(tmp_path / "work", DeviceLimits(memory=32 * MIB), mounts=[model]) as bed:
            device = bed.up(1)[0]
            path = device.path_of(model / "block")
            start(device, inbox, READS.format(path=path))
            lines, end = read_to_exit(inbox)
            counters: Any = device.facts()["counters"]
        assert (lines, end.code, end.oom, end.host_oom) == ([b"67108864"], 0, False, False)
        assert counters["memory_was_full"]

    def test_container_killed_by_somebody_is_not_out_of_memory(self, daemon, device, inbox):
        start(device, inbox, OBEDIENT)
        read_line(inbox)
        daemon.client.kill(device._container.id)
        _, end = read_to_exit(inbox)
        assert (end.code, end.oom, end.host_oom) == (-signal.SIGKILL, False, False)
        with pytest.raises(DeviceError, match="device 0: cannot start python3: "):
            start(device, inbox, OBEDIENT)


@pytest.mark.docker
class TestIsolation:
    def test_program_can_do_little(self, tmp_path, inbox):
        model = tmp_path / "model"
        model.mkdir()
        with make_bed(tmp_path / "work", mounts=[model]) as bed:
            start(bed.up(1)[0], inbox, ABOUT_ITSELF)
            found = json.loads(read_line(inbox))
        uid, gid, groups = found["ids"]
        assert uid == (os.getuid() or 65532)
        assert set(groups) <= {gid}
        assert set(found["caps"]) == {"0"}
        assert (found["no_new_privs"], found["seccomp"]) == ("1", "2")
        assert found["links"] == ["lo"]
        assert found["shm"] == 256 * MIB
        assert not found["socket"]
        writes = found["writes"]
        assert {path for path in writes if writes[path] == "ok"} == {"/work/x", "/tmp/x"}

    def test_docker_says_so_too(self, device):
        about = inspect(device._container.id)
        host = about["HostConfig"]
        assert host["NetworkMode"] == "none"
        assert (host["CapDrop"], host["CapAdd"], host["Privileged"]) == (["ALL"], None, False)
        assert host["ReadonlyRootfs"]
        assert host["PidsLimit"] == 1024
        writable = {mount["Target"] for mount in host["Mounts"] if not mount.get("ReadOnly")}
        assert writable == {"/work", "/tmp"}
        assert not [mount for mount in host["Mounts"] if "docker.sock" in mount["Source"]]
        assert RunLabel.parse(about["Config"]["Labels"]) is not None

    def test_writing_what_a_program_wrote_is_bounded(self, bed, device, inbox, tmp_path):
        start(device, inbox, "import sys\nfor _ in range(20): sys.stderr.write('x' * (1 << 20))")
        read_to_exit(inbox)
        (log,) = tmp_path.rglob("program-0.log")
        assert 16 * MIB < log.stat().st_size < 17 * MIB

    def test_descendant_that_leaves_the_session_holds_nothing_up(self, bed, device, inbox):
        program = (
            "import os, sys, time\n"
            "told, tell = os.pipe()\n"
            "if os.fork() == 0:\n"
            "    os.setsid(); print('left', flush=True); os.write(tell, b'.'); time.sleep(600)\n"
            "os.read(told, 1)\n"
            "sys.exit(5)"
        )
        start(device, inbox, program)
        lines, end = read_to_exit(inbox)
        assert (lines, end.code) == ([b"left"], 5)
        left = device.cgroup.pids()
        bed.down()
        assert all(is_gone(pid) for pid in left)


@pytest.mark.docker
class TestEnds:
    def test_paused_container_is_removed(self, bed, daemon, device, inbox):
        start(device, inbox, OBEDIENT)
        read_line(inbox)
        daemon.client.pause(device._container.id)
        bed.down()
        assert read_to_exit(inbox)[1].stopped

    def test_idle_paused_container_is_removed(self, bed, daemon, device):
        container_id = device._container.id
        daemon.client.pause(container_id)
        bed.down()
        assert container_id not in containers_of(bed.label)

    def test_program_in_a_paused_container_is_stopped(self, daemon, device, inbox):
        process = start(device, inbox, OBEDIENT)
        read_line(inbox)
        daemon.client.pause(device._container.id)
        assert process.stop(grace_s=0.1).stopped

    def test_foreign_containers_are_left_alone(self, bed, daemon):
        made = daemon.client.create_container(device_image(), ["cat"], stdin_open=True)
        try:
            daemon.client.start(made["Id"])
            bed.up(2)
            bed.down()
            assert inspect(made["Id"])["State"]["Running"]
        finally:
            daemon.client.remove_container(made["Id"], force=True)

    @pytest.mark.parametrize("failure", [DeviceError, RuntimeError, KeyboardInterrupt])
    def test_failed_link_takes_all_devices_away(self, tmp_path, failure):
        links = NoLinks(fails_at=1, failure=failure)
        with make_bed(tmp_path, links=links) as bed:
            with pytest.raises(failure, match="link 1"):
                bed.up(3)
            assert containers_of(bed.label) == []
            assert len(links.attached) == 1
            assert links.num_closed == 1

    def test_missing_image_is_one_line(self, tmp_path):
        with make_bed(tmp_path, image="tpi-lab-device:none") as bed:
            with pytest.raises(
                DeviceError, match=r"device 0: .*the image is not there; `make image`"
            ):
                bed.up(2)
            assert containers_of(bed.label) == []

    @pytest.mark.slow
    @pytest.mark.timeout(90)
    def test_twenty_runs_leave_nothing(self, tmp_path, inbox):
        threads = count("/proc/self/task")
        with make_bed(tmp_path, LIMITS) as bed:
            for _ in range(20):
                for device in bed.up(2):
                    start(device, inbox, OBEDIENT)
                    read_line(inbox)
                bed.down()
                assert [read_to_exit(inbox)[1].stopped for _ in range(2)] == [True, True]
            assert containers_of(bed.label) == []
        assert not list(tmp_path.rglob("work"))
        assert count("/proc/self/task") <= threads
        assert count("/proc/self/fd") < 60

    def test_warming_up_is_done_once_and_charged_to_nobody(self, tmp_path):
        warm_up = ("sh", "-c", "echo once; echo twice >&2")
        with make_bed(tmp_path, LIMITS, warm_up=warm_up) as bed:
            for _ in range(2):
                device = bed.up(1)[0]
                assert device.facts()["limits"]["memory_bytes"] == 96 * MIB  # type: ignore[index]
        assert [log.read_text() for log in tmp_path.rglob("*.log")] == ["twice\n"]

    def test_failing_to_warm_up_is_one_line(self, tmp_path):
        warm_up = ("sh", "-c", "echo no >&2; exit 3")
        with make_bed(tmp_path, warm_up=warm_up) as bed:
            with pytest.raises(DeviceError, match="sh to warm up failed: no"):
                bed.up(1)
            assert containers_of(bed.label) == []

    def test_proof_comes_from_the_devices_and_its_memory_is_forgotten(self, tmp_path, inbox):
        def probe(
            devices: Sequence[DockerDevice], expected: object, **options: object
        ) -> ProbeReport:
            start(devices[0], inbox, "x = b'x' * (50 << 20)")
            assert read_to_exit(inbox)[1].code == 0
            return ProbeReport((), 1.5)

        def make_verifier(devices: Sequence[DockerDevice], network: Network) -> LimitVerifier:
            expected = [Expected(DeviceLimits(), LinkSpec())] * len(devices)
            return LimitVerifier(devices, expected, network, probe=probe)

        links = NoLinks()
        with make_bed(tmp_path, links=links, verifier_factory=make_verifier) as bed:
            device = bed.up(2)[0]
            assert bed.verify("before") == VerificationReport(
                {"before": ProbeReport((), 1.5).to_json(), "links": {}}
            )
            meters = device.meter()
            assert meters.rss_hwm == 0
            assert max(meters.anon_peak or 0, meters.cgroup_peak or 0) < 10 * MIB
            links.problem = "link 1: its delay is gone"
            after = bed.verify("after")
            assert after.problems == ("after the run: link 1: its delay is gone",)
            assert {*after.figures} == {"conditions", "after"}

    def test_too_many_devices_are_refused(self, bed):
        with pytest.raises(DeviceError, match="9 devices asked for, 1 to 4"):
            bed.up(9)


TELLS_RTT = (
    "import socket, statistics, sys, time\n"
    "with socket.create_connection((sys.argv[1], int(sys.argv[2])), 5) as peer:\n"
    "    rtts_s = []\n"
    "    for _ in range(20):\n"
    "        begin = time.monotonic(); peer.sendall(b'x'); peer.recv(1)\n"
    "        rtts_s.append(time.monotonic() - begin)\n"
    "print(statistics.median(rtts_s))"
)
ECHOES = (
    "import socket, sys\n"
    "with socket.create_server((sys.argv[1], int(sys.argv[2]))) as server:\n"
    "    print('listening', flush=True)\n"
    "    peer, _ = server.accept()\n"
    "    while data := peer.recv(100): peer.sendall(data)"
)


@pytest.mark.docker
def test_devices_reach_each_other_over_their_links(tmp_path, inbox):
    link = LinkSpec(delay_s=0.005)
    limits = [DeviceLimits()] * 2
    label = RunLabel.mine("test-links")
    with DockerTestbed(
        tmp_path, limits, [link] * 2, image=device_image(), mounts=[], label=label
    ) as bed:
        master, worker = bed.up(2)
        place = [master.address, str(master.free_port())]
        master.run([master.python, "-S", "-c", ECHOES, *place], inbox)
        assert read_line(inbox) == b"listening"
        worker.run([worker.python, "-S", "-c", TELLS_RTT, *place], inbox)
        # Two devices, each way one delay to the core and one from it.
        assert 0.02 <= float(read_line(inbox)) < 0.03
        assert master.facts()["link_backend"] != "none"


HARNESS = """
import sys
from pathlib import Path
from tpi.program.process import make_inbox
from tests.testbed.beds import make_bed
from testbed.host.label import RunLabel
from tests.testbed.programs import STUBBORN, read_line, start

inbox = make_inbox()
bed = make_bed(Path(sys.argv[1]), label=RunLabel.mine(sys.argv[2]))
processes = [start(device, inbox, STUBBORN) for device in bed.up(2)]
lines = [read_line(inbox) for _ in processes]
print(*(process.pid for process in processes), flush=True)
sys.stdin.read()
"""


@pytest.mark.docker
@pytest.mark.slow
@pytest.mark.timeout(60)
def test_killed_harness_leaves_nothing(tmp_path):
    run_id = f"test-{uuid.uuid4().hex[:8]}"
    harness = subprocess.Popen(
        [sys.executable, "-c", HARNESS, str(tmp_path), run_id],
        cwd=Path(__file__).parents[3],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with harness:
        assert harness.stdout is not None
        pids = [int(word) for word in harness.stdout.readline().split()]
        label = RunLabel(run_id, "", 0, 0)
        assert len(pids) == len(containers_of(label)) == 2
        harness.kill()
    assert await_gone(label, 30)
    assert all(is_gone(pid) for pid in pids)


@pytest.mark.docker
def test_daemon_that_goes_away_ends_everything(tmp_path, inbox, monkeypatch):
    proxy = DaemonProxy(tmp_path / "d")
    with make_bed(tmp_path / "work", num_devices=2) as bed:
        with monkeypatch.context() as patch:
            patch.setenv("DOCKER_HOST", f"unix://{tmp_path}/d")
            devices = bed.up(2)
        process = start(devices[0], inbox, OBEDIENT)
        read_line(inbox)
        pids = [device.pid for device in devices]
        proxy.stop()
        _, end = read_to_exit(inbox)
        assert (end.code, end.oom) == (-signal.SIGKILL, False)
        assert "the Docker daemon does not answer" in end.log_tail
        # Either the daemon is missed, or already the container.
        with pytest.raises(DeviceError, match="device 1: cannot start python3: "):
            start(devices[1], inbox, OBEDIENT)
        bed.down()
        assert is_gone(process.pid)
        assert all(is_gone(pid) for pid in pids)
        assert await_gone(bed.label, 10)


def bed_without_daemon(tmp_path: Path) -> DockerTestbed:
    return DockerTestbed(
        tmp_path,
        [DeviceLimits()],
        [LinkSpec()],
        image="none",
        mounts=[],
        label=RunLabel.mine("test"),
        network_factory=lambda _: NoLinks(),
    )


def test_daemon_that_is_not_there_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none")
    with bed_without_daemon(tmp_path) as bed, pytest.raises(DeviceError) as caught:
        bed.up(1)
    assert "the Docker daemon does not answer; start it" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_model_folder_that_is_not_there_is_refused_before_anything(tmp_path):
    bed = bed_without_daemon(tmp_path)
    bed._mounts = (tmp_path / "none",)
    with pytest.raises(ConfigError, match="none: No such file"):
        bed.up(1)
