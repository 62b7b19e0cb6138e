"""Host facts from fake trees, and once from this host."""

import json
from pathlib import Path

from testbed.host.environment import (
    available_memory,
    cgroup_version,
    dependency_versions,
    disk_of,
    host_environment,
    host_fingerprint,
)


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def fake_host(root: Path) -> None:
    write(root, "proc/cpuinfo", "processor : 0\nmodel name\t: Fast CPU @ 3 GHz\n")
    write(root, "proc/meminfo", "MemTotal: 16777216 kB\nMemAvailable: 1024 kB\nSwapTotal: 0 kB\n")
    write(root, "proc/loadavg", "0.25 0.5 1.0 1/80 99\n")
    write(root, "sys/fs/cgroup/cgroup.controllers", "cpu memory")
    write(root, "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "performance\n")


def test_facts_are_read_from_the_trees(tmp_path):
    fake_host(tmp_path)
    facts = host_environment(root=tmp_path)
    assert facts["cpu_model"] == "Fast CPU @ 3 GHz"
    assert (facts["memory_bytes"], facts["memory_gib"]) == (16 << 30, 16)
    assert (facts["governor"], facts["throttle_count"]) == ("performance", None)
    assert (facts["cgroup"], facts["load_1m"]) == (2, 0.25)
    assert available_memory(tmp_path) == 1 << 20


def test_what_cannot_be_read_is_none(tmp_path):
    facts = host_environment(root=tmp_path)
    assert (
        facts["cpu_model"] is facts["memory_bytes"] is facts["cgroup"] is facts["load_1m"] is None
    )


def test_old_cgroups_are_version_1(tmp_path):
    (tmp_path / "sys/fs/cgroup/memory").mkdir(parents=True)
    assert cgroup_version(tmp_path) == 1


def test_disk_is_that_of_the_longest_mount_point(tmp_path):
    fake = tmp_path / "root"
    write(fake, "proc/mounts", f"/dev/a / ext4 rw 0 0\n/dev/b {tmp_path} xfs rw 0 0\n")
    disk = disk_of(tmp_path / "not" / "there", fake)
    assert (disk["device"], disk["file_system"], disk["mount"]) == ("/dev/b", "xfs", str(tmp_path))
    free, size = disk["free_bytes"], disk["size_bytes"]
    assert isinstance(free, int)
    assert isinstance(size, int)
    assert 0 <= free <= size


def test_fingerprint_changes_with_the_machine_and_not_with_its_load():
    facts = host_environment()
    assert host_fingerprint(facts) == host_fingerprint({**facts, "load_1m": 9.0})
    assert host_fingerprint(facts) != host_fingerprint({**facts, "cores": 999})
    assert json.loads(json.dumps(facts)) == facts


def test_package_that_is_not_installed_has_no_version():
    versions = dependency_versions(("numpy", "no-such-package"))
    assert versions["numpy"]
    assert versions["no-such-package"] is None
