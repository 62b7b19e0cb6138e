"""Peaks of a container from fake trees: kept when it is gone, and forgotten when asked."""

import pytest

from testbed.docker.meter import SAMPLED, ContainerMeter
from testbed.limits.cgroup import open_cgroup
from tests.testbed.cgroups import make_v1, make_v2, write_all
from tests.testbed.host.test_procfs import write_process


@pytest.fixture
def folder(tmp_path):
    write_process(tmp_path / "proc", 100, 300, 200)
    return make_v2(tmp_path)


def make_meter(root):
    return ContainerMeter(lambda: [100], open_cgroup(100, root), root / "proc")


def test_three_ways(tmp_path, folder):
    meters = make_meter(tmp_path).read()
    assert (meters.rss_hwm, meters.anon_peak) == (300 * 1024, 8192)
    assert (meters.cgroup_peak, meters.words) == (64 << 20, {})


def test_peaks_outlive_the_container(tmp_path, folder):
    meter = make_meter(tmp_path)
    before = meter.read()
    for path in folder.iterdir():
        path.unlink()
    meter.close()
    meter.close()
    after = meter.read()
    assert (after.anon_peak, after.cgroup_peak) == (before.anon_peak, before.cgroup_peak)


def test_kernel_without_a_peak_gives_the_largest_sample(tmp_path, folder):
    (folder / "memory.peak").unlink()
    meter = make_meter(tmp_path)
    meter.read()
    write_all(folder, {"memory.current": "5"})
    meters = meter.read()
    assert (meters.cgroup_peak, meters.words) == (40 << 20, {"cgroup_peak": SAMPLED})


def test_reset_forgets_a_probe_in_version_2(tmp_path, folder):
    meter = make_meter(tmp_path)
    meter.read()
    write_all(folder, {"memory.current": "4096", "memory.stat": "anon 1\nfile 2\n"})
    meter.reset()
    meters = meter.read()
    assert (meters.anon_peak, meters.cgroup_peak) == (1, 4096)
    assert meters.words == {"cgroup_peak": SAMPLED}
    assert meters.num_samples == 1


def test_reset_forgets_a_probe_in_version_1(tmp_path):
    write_process(tmp_path / "proc", 100, 300, 200)
    make_v1(tmp_path)
    meter = make_meter(tmp_path)
    assert meter.read().cgroup_peak == 64 << 20
    meter.reset()
    assert (meter.read().cgroup_peak, meter.read().words) == (0, {})
