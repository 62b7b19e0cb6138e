"""Control groups in fake trees, as kernels write them: version 1, and 2 with either driver."""

from collections.abc import Mapping
from pathlib import Path

V1_UNLIMITED = 9223372036854771712
V1_FILES = {
    "memory/memory.usage_in_bytes": "41943040\n",
    "memory/memory.max_usage_in_bytes": "67108864\n",
    "memory/memory.limit_in_bytes": "67108864\n",
    "memory/memory.memsw.limit_in_bytes": "100663296\n",
    "memory/memory.failcnt": "3\n",
    "memory/memory.memsw.failcnt": "4\n",
    "memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
    "memory/memory.stat": (
        "cache 1\nrss 2\nswap 3\nhierarchical_memory_limit 67108864\n"
        "total_cache 4096\ntotal_rss 8192\ntotal_swap 12288\n"
    ),
    "memory/cgroup.procs": "100\n101\n",
    "cpu/cpu.cfs_quota_us": "5000\n",
    "cpu/cpu.cfs_period_us": "10000\n",
    "cpu/cpu.stat": "nr_periods 32\nnr_throttled 22\nthrottled_time 108976494\nnr_bursts 0\n",
    "cpuacct/cpuacct.usage": "1234567\n",
    "blkio/blkio.throttle.io_service_bytes": (
        "254:0 Read 4096\n254:0 Write 512\n254:0 Sync 4608\n254:0 Total 4608\nTotal 4608\n"
    ),
    "blkio/blkio.throttle.read_bps_device": "254:0 52428800\n",
    "blkio/blkio.throttle.write_bps_device": "",
}
V2_FILES = {
    "memory.current": "41943040\n",
    "memory.peak": "67108864\n",
    "memory.max": "67108864\n",
    "memory.swap.max": "33554432\n",
    "memory.swap.current": "12288\n",
    "memory.events": "low 0\nhigh 0\nmax 7\noom 2\noom_kill 2\noom_group_kill 0\n",
    "memory.stat": "anon 8192\nfile 4096\nkernel 100\n",
    "cgroup.procs": "100\n101\n",
    "cpu.max": "5000 10000\n",
    "cpu.stat": (
        "usage_usec 1234\nuser_usec 1000\nsystem_usec 234\n"
        "nr_periods 32\nnr_throttled 22\nthrottled_usec 108976\n"
    ),
    "io.stat": "254:0 rbytes=4096 wbytes=512 rios=1 wios=1 dbytes=0 dios=0\n8:0 \n",
    "io.max": "254:0 rbps=52428800 wbps=max riops=max wiops=max\n",
}
V1_CONTROLLERS = ("cpu", "cpuacct", "memory", "blkio")


def make_v1(root: Path, pid: int = 100, group: str = "/docker/abc", joined: bool = False) -> Path:
    """Version 1 beside an unused version 2, as systemd's hybrid mode has it; gives its place."""
    places = {name: name for name in V1_CONTROLLERS}
    if joined:  # as distributions mount it
        places["cpu"] = places["cpuacct"] = "cpu,cpuacct"
    mounts = "".join(
        f"3{i} 31 0:{i} / /sys/fs/cgroup/{place} rw,nosuid shared:9 - cgroup cgroup rw,{place}\n"
        for i, place in enumerate(sorted(set(places.values())))
    )
    mounts += "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"
    lines = [f"{i}:{place}:{group}" for i, place in enumerate(sorted(set(places.values())))]
    write_proc(root, pid, "\n".join([*lines, "1:name=systemd:/x", "0::/x", ""]), mounts)
    for name, text in V1_FILES.items():
        controller, file = name.split("/")
        write(root / "sys/fs/cgroup" / places[controller] / group.lstrip("/") / file, text)
    return root / "sys/fs/cgroup"


def make_v2(root: Path, pid: int = 100, group: str = "/docker/abc") -> Path:
    """Version 2 alone; gives the group's folder."""
    mounts = (
        "30 23 0:26 / /sys/fs/cgroup rw,nosuid,nodev shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
    )
    write_proc(root, pid, f"0::{group}\n", mounts)
    folder = root / "sys/fs/cgroup" / group.lstrip("/")
    for name, text in V2_FILES.items():
        write(folder / name, text)
    return folder


def write_proc(root: Path, pid: int, cgroup: str, mounts: str) -> None:
    write(root / "proc" / str(pid) / "cgroup", cgroup)
    write(root / "proc/self/mountinfo", "27 1 254:0 / / rw - ext4 /dev/vda rw\n" + mounts)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def write_all(folder: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        write(folder / name, text)
