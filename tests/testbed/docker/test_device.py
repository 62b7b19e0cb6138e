"""A device's folder, paths and ports, without a container."""

import os

import pytest

from testbed.base import DeviceError
from testbed.docker.container import Container
from testbed.docker.container_spec import ContainerSpec
from testbed.docker.device import (
    DeviceFolder,
    DockerDevice,
    counters_of,
    free_port,
    limits_in_force,
)
from testbed.limits.cgroup import open_cgroup
from testbed.limits.limits import DeviceLimits
from tests.testbed.cgroups import make_v1, make_v2
from tpi.errors import ConfigError

ME = (os.getuid(), os.getgid())
TCP = (
    "  sl  local_address rem_address   st tx_queue rx_queue\n"
    "   0: 0100007F:{listening:04X} 00000000:0000 0A 00000000:00000000\n"
    "   1: 0100007F:{connected:04X} 0100007F:1234 01 00000000:00000000\n"
)


@pytest.fixture
def folder(tmp_path):
    return DeviceFolder(tmp_path / "device-0", ME)


@pytest.fixture
def device(tmp_path, folder):
    model = tmp_path / "model"
    model.mkdir()
    mounts = [*folder.mounts, (model, "/models/0", False)]
    spec = ContainerSpec(0, "name", "image", ME, DeviceLimits(), mounts=mounts)
    return DockerDevice(spec, Container.__new__(Container), folder, {})


def test_program_gets_a_folder_and_reads_its_spec(tmp_path, folder):
    path = folder.add_program("program-0", {"rank": 1})
    assert path == "/specs/program-0.json"
    assert (tmp_path / "device-0/specs/program-0.json").read_text() == '{"rank": 1}'
    assert (tmp_path / "device-0/work/program-0").is_dir()
    assert folder.add_program("program-1", None) is None


def test_folder_that_a_program_made_first_is_not_taken(tmp_path, folder):
    (tmp_path / "device-0/work/program-0").symlink_to("/etc")
    with pytest.raises(DeviceError, match=r"work folder .*program-0"):
        folder.add_program("program-0", None)


def test_device_folder_that_is_there_is_refused(tmp_path, folder):
    with pytest.raises(DeviceError, match="work folder"):
        DeviceFolder(tmp_path / "device-0", ME)


def test_logs_are_not_mounted(folder):
    assert not [path for path, _, _ in folder.mounts if folder.log("x").is_relative_to(path)]


def test_paths_are_those_of_the_mounts(tmp_path, device):
    (tmp_path / "link").symlink_to(tmp_path / "model")
    assert device.path_of(tmp_path / "model") == "/models/0"
    assert device.path_of(tmp_path / "link" / "rank-0" / "x") == "/models/0/rank-0/x"
    assert device.path_of(tmp_path / "device-0/work/offload") == "/work/offload"


def test_path_that_is_not_mounted_is_refused(tmp_path, device):
    with pytest.raises(ConfigError, match="device 0 does not see it"):
        device.path_of(tmp_path / "model-2")


def test_port_that_is_listened_on_is_not_free(monkeypatch):
    monkeypatch.setattr("random.choice", lambda ports: ports[0])
    table = TCP.format(listening=20_000, connected=20_001)
    assert free_port([table, table]) == 20_001
    assert free_port([]) == 20_000


@pytest.mark.parametrize("make", [make_v1, make_v2])
def test_record_of_limits_and_counters(tmp_path, make):
    make(tmp_path)
    cgroup = open_cgroup(100, tmp_path)
    limits = limits_in_force(cgroup)
    assert (limits["memory_bytes"], limits["swap_bytes"], limits["cpus"]) == (
        64 << 20,
        32 << 20,
        0.5,
    )
    assert limits["disks"] == {"254:0": {"read_bps": 52428800, "write_bps": None}}
    counters = counters_of(cgroup)
    assert (counters["cpu_periods"], counters["cpu_periods_throttled"]) == (32, 22)
    assert (counters["oom_kills"], counters["memory_limit_hits"]) == (2, 7)
