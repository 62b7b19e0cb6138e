"""Control groups of either version give the same numbers from their different files."""

import pytest

from testbed.base import DeviceError
from testbed.limits.cgroup import open_cgroup
from tests.testbed.cgroups import V1_UNLIMITED, make_v1, make_v2, write_all

SYSTEMD_GROUP = "/system.slice/docker-abc.scope"


@pytest.fixture(params=["v1", "v1 joined", "v2 cgroupfs", "v2 systemd"])
def cgroup(request, tmp_path):
    if request.param.startswith("v1"):
        make_v1(tmp_path, joined="joined" in request.param)
    else:
        make_v2(tmp_path, group=SYSTEMD_GROUP if "systemd" in request.param else "/docker/abc")
    return open_cgroup(100, tmp_path)


def test_memory_is_read(cgroup):
    assert (cgroup.memory_current, cgroup.memory_peak) == (40 << 20, 64 << 20)
    assert (cgroup.memory_limit, cgroup.swap_limit) == (64 << 20, 32 << 20)
    assert (cgroup.anon_bytes, cgroup.file_bytes, cgroup.swap_bytes) == (8192, 4096, 12288)


def test_what_it_ran_into_is_counted(cgroup):
    assert (cgroup.oom_kills, cgroup.limit_hits) == (2, 7)


def test_cpu_is_read(cgroup):
    assert cgroup.cpu_quota == (5000, 10000)
    assert cgroup.throttling[:2] == (32, 22)
    assert cgroup.throttling[2] // 1000 == 108976
    assert cgroup.cpu_usage_ns // 1000 == 1234


def test_disks_are_read(cgroup):
    assert cgroup.io_bytes()["254:0"] == (4096, 512)
    assert cgroup.io_limits() == {"254:0": (52428800, None)}


def test_processes_are_listed(cgroup):
    assert cgroup.pids() == [100, 101]


def test_v1_without_limits(tmp_path):
    place = make_v1(tmp_path)
    write_all(
        place,
        {
            "memory/docker/abc/memory.limit_in_bytes": str(V1_UNLIMITED),
            "memory/docker/abc/memory.memsw.limit_in_bytes": str(V1_UNLIMITED),
            "cpu/docker/abc/cpu.cfs_quota_us": "-1\n",
            "blkio/docker/abc/blkio.throttle.read_bps_device": "",
        },
    )
    cgroup = open_cgroup(100, tmp_path)
    assert (cgroup.memory_limit, cgroup.swap_limit, cgroup.cpu_quota) == (None, None, None)
    assert cgroup.io_limits() == {}


def test_v1_without_swap_accounting(tmp_path):
    place = make_v1(tmp_path)
    for name in ("limit_in_bytes", "failcnt"):
        (place / f"memory/docker/abc/memory.memsw.{name}").unlink()
    cgroup = open_cgroup(100, tmp_path)
    assert (cgroup.swap_limit, cgroup.limit_hits) == (None, 3)


@pytest.mark.parametrize(
    ("peak", "full"), [(64 << 20, True), ((64 << 20) - 4096, True), (1, False)]
)
def test_v1_was_full_where_failures_are_not_counted(tmp_path, peak, full):
    place = make_v1(tmp_path)
    write_all(place, {"memory/docker/abc/memory.max_usage_in_bytes": str(peak)})
    assert open_cgroup(100, tmp_path).was_full is full


def test_v1_peak_begins_anew(tmp_path):
    place = make_v1(tmp_path)
    assert open_cgroup(100, tmp_path).reset_peak()
    assert (place / "memory/docker/abc/memory.max_usage_in_bytes").read_text() == "0"


def test_v2_without_limits_on_an_old_kernel(tmp_path):
    folder = make_v2(tmp_path)
    write_all(folder, {"memory.max": "max\n", "cpu.max": "max 100000\n", "io.max": ""})
    for name in ("memory.peak", "memory.swap.max", "memory.swap.current"):
        (folder / name).unlink()
    cgroup = open_cgroup(100, tmp_path)
    assert (cgroup.memory_limit, cgroup.swap_limit, cgroup.cpu_quota) == (None, None, None)
    assert (cgroup.memory_peak, cgroup.swap_bytes, cgroup.io_limits()) == (None, 0, {})
    assert not cgroup.reset_peak()


def test_versions_are_told_apart(tmp_path):
    make_v1(tmp_path / "one")
    make_v2(tmp_path / "two")
    assert open_cgroup(100, tmp_path / "one").version == 1
    assert open_cgroup(100, tmp_path / "two").version == 2


def test_group_inside_what_the_mount_shows(tmp_path):
    make_v2(tmp_path, group="/docker/abc")
    mounts = "30 23 0:26 /outer /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
    write_all(tmp_path, {"proc/self/mountinfo": mounts, "proc/100/cgroup": "0::/outer/docker/abc"})
    assert open_cgroup(100, tmp_path).memory_current == 40 << 20


def test_process_that_is_gone_is_one_error(tmp_path):
    make_v2(tmp_path)
    with pytest.raises(DeviceError, match="proc/7/cgroup"):
        open_cgroup(7, tmp_path)


def test_group_that_is_gone_is_one_error(tmp_path):
    make_v2(tmp_path)
    cgroup = open_cgroup(100, tmp_path)
    write_all(tmp_path, {"proc/100/cgroup": "0::/docker/gone\n"})
    with pytest.raises(DeviceError, match="docker/gone"):
        open_cgroup(100, tmp_path)
    (tmp_path / "sys/fs/cgroup/docker/abc/memory.current").unlink()
    with pytest.raises(DeviceError, match=r"memory\.current"):
        _ = cgroup.memory_current


def test_controller_that_is_not_mounted_is_named(tmp_path):
    make_v1(tmp_path)
    write_all(tmp_path, {"proc/100/cgroup": "1:memory:/docker/abc\n0::/\n"})
    with pytest.raises(DeviceError, match="controller cpu is not mounted"):
        open_cgroup(100, tmp_path)
