"""What Docker is asked for, word by word, and that what is not in force is noticed."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from testbed.base import DeviceError
from testbed.docker.container_spec import (
    ContainerSpec,
    container_arguments,
    cpu_quota,
    limit_differences,
)
from testbed.limits.blockdev import Disk
from testbed.limits.cgroup import open_cgroup
from testbed.limits.limits import DeviceLimits
from tests.testbed.cgroups import make_v1, make_v2, write_all

LIMITS = DeviceLimits(
    cpus=0.5, threads=2, memory=64 << 20, swap=32 << 20, read_bps=52428800, write_bps=None
)
SPEC = ContainerSpec(
    index=3,
    name="tpi-lab-3-abc",
    image="tpi-lab-device:0123",
    user=(65532, 65532),
    limits=LIMITS,
    labels={"org.tpi-lab.run": "r"},
    mounts=[(Path("/data/w"), "/work", True), (Path("/data/m"), "/models/0", False)],
    env={"A": "b"},
    disks=[Disk("vda", "254:0")],
    cgroup_version=1,
)


def test_arguments_of_a_limited_device():
    assert container_arguments(SPEC) == {
        "image": "tpi-lab-device:0123",
        "name": "tpi-lab-3-abc",
        "command": ["cat"],
        "hostname": "device-3",
        "user": "65532:65532",
        "environment": {"A": "b"},
        "labels": {"org.tpi-lab.run": "r"},
        "stdin_open": True,
        "host_config": {
            "network_mode": "none",
            "cap_drop": ["ALL"],
            "security_opt": ["no-new-privileges"],
            "read_only": True,
            "init": True,
            "auto_remove": True,
            "pids_limit": 1024,
            "shm_size": 256 << 20,
            "oom_score_adj": 500,
            "log_config": {"Type": "none"},
            "ulimits": [{"Name": "core", "Soft": 0, "Hard": 0}],
            "mounts": [
                {"Target": "/work", "Source": "/data/w", "Type": "bind", "ReadOnly": False},
                {"Target": "/models/0", "Source": "/data/m", "Type": "bind", "ReadOnly": True},
            ],
            "mem_limit": 64 << 20,
            "memswap_limit": 96 << 20,
            "cpu_quota": 5000,
            "cpu_period": 10000,
            "device_read_bps": [{"Path": "/dev/vda", "Rate": 52428800}],
        },
    }
    json.dumps(container_arguments(SPEC))


def test_nothing_is_limited_that_was_not_asked():
    host = container_arguments(replace(SPEC, limits=DeviceLimits()))["host_config"]
    assert not {key for key in host if key.startswith(("mem", "cpu", "device"))}


@pytest.mark.parametrize(("version", "swappiness"), [(1, 0), (2, None)])
def test_without_swap_nothing_is_swapped(version, swappiness):
    spec = replace(SPEC, limits=replace(LIMITS, swap=0), cgroup_version=version)
    host = container_arguments(spec)["host_config"]
    assert host["memswap_limit"] == host["mem_limit"]
    assert host.get("mem_swappiness") == swappiness


@pytest.mark.parametrize(
    ("cpus", "expected"),
    [
        (8.0, (80_000, 10_000)),
        (0.5, (5_000, 10_000)),
        (0.2, (2_000, 10_000)),
        (0.1, (1_000, 10_000)),
        (0.05, (1_000, 20_000)),
        (0.01, (1_000, 100_000)),
    ],
)
def test_periods_are_short_and_quotas_whole(cpus, expected):
    assert cpu_quota(cpus) == expected


@pytest.mark.parametrize("cpus", [0.001, 0.0123, 0.07, 0.21, 0.333, 1.7])
def test_share_is_kept_within_a_thousandth(cpus):
    quota, period = cpu_quota(cpus)
    assert quota / period == pytest.approx(cpus, rel=1e-3)
    assert quota >= 1_000
    assert period <= 1_000_000


def test_share_below_the_kernels_smallest_is_refused():
    with pytest.raises(DeviceError, match=r"0\.0005 is less than 0\.001"):
        cpu_quota(0.0005)


@pytest.mark.parametrize("make", [make_v1, make_v2])
def test_limits_in_force_are_what_was_asked_for(tmp_path, make):
    make(tmp_path)
    assert limit_differences(SPEC, open_cgroup(100, tmp_path)) == []


@pytest.mark.parametrize("make", [make_v1, make_v2])
@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"memory": 32 << 20}, "memory: asked for 33554432, in force 67108864"),
        ({"swap": 0}, "swap: asked for 0, in force 33554432"),
        ({"cpus": None}, "cpu quota: asked for None"),
        ({"read_bps": 1}, "read rate of disk 254:0: asked for 1, in force 52428800"),
        ({"write_bps": 9}, "write rate of disk 254:0: asked for 9, in force None"),
    ],
)
def test_limit_that_is_not_in_force_is_named(tmp_path, make, asked, words):
    make(tmp_path)
    spec = replace(SPEC, limits=replace(LIMITS, **asked))
    differences = limit_differences(spec, open_cgroup(100, tmp_path))
    assert len(differences) == 1
    assert words in differences[0]


def test_disk_that_is_not_limited_at_all_is_named(tmp_path):
    folder = make_v2(tmp_path)
    write_all(folder, {"io.max": ""})
    assert limit_differences(SPEC, open_cgroup(100, tmp_path)) == [
        "read rate of disk 254:0: asked for 52428800, in force None"
    ]
