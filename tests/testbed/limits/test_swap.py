"""Swap: used where it is, made where it may be, else refused in a line; never left behind."""

import errno
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from testbed.base import DeviceError
from testbed.host.label import RunLabel, start_ticks
from testbed.limits.limits import DeviceLimits
from testbed.limits.swap import (
    accounting_problem,
    ensure_swap,
    free_swap_bytes,
    leftover_swap,
    owner_of,
    reap_swap,
    run_tool,
    swap_areas,
    swap_name,
)
from testbed.verify.host_counters import take_snapshot
from tests.testbed.beds import make_bed
from tests.testbed.cgroups import write
from tests.testbed.programs import read_line, read_to_exit, start
from tpi.errors import ConfigError
from tpi.program.process import make_inbox

MIB = 1 << 20
HEADER = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
LABEL = RunLabel("run-1", socket.gethostname(), 4194399, 12)  # a number that no process has


class FakeTools:
    """mkswap, swapon and swapoff of a fake host; `fails` says how often one does."""

    def __init__(self, root: Path, **fails: int) -> None:
        self._swaps = root / "proc/swaps"
        self.fails = fails
        self.ran: list[str] = []
        self.modes: list[int] = []

    def __call__(self, argv: Sequence[str], timeout_s: float) -> None:
        name, path = argv
        self.ran.append(name)
        if self.fails.get(name, 0):
            self.fails[name] -= 1
            raise DeviceError(f"swap: {name} {path}: it fails")
        status = Path(path).stat()
        self.modes.append(status.st_mode & 0o777)
        lines = self._swaps.read_text()
        row = f"{path} file\t{status.st_size // 1024}\t0\t-2\n"
        if name == "swapon":
            self._swaps.write_text(lines + row)
        elif name == "swapoff":
            assert row in lines
            self._swaps.write_text(lines.replace(row, ""))


@pytest.fixture
def root(tmp_path):
    """A host without swap that could account it, version 1."""
    root = tmp_path / "root"
    write(root / "proc/swaps", HEADER)
    write(root / "sys/fs/cgroup/memory/memory.memsw.limit_in_bytes", "9223372036854771712\n")
    return root


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "weights of mine"
    folder.mkdir()
    return folder


@pytest.fixture
def tools(root):
    return FakeTools(root)


def test_no_need_takes_nothing(tmp_path):
    with ensure_swap(0, tmp_path, LABEL, may_make=False, uid=1000, root=tmp_path) as path:
        assert path is None


def test_free_swap_of_the_host_suffices(root, folder, tools):
    write(root / "proc/swaps", f"{HEADER}/dev/vdb partition 102400 2048 -2\n/swap file 1024 0 -3\n")
    assert free_swap_bytes(root) == 99 * MIB
    with ensure_swap(99 * MIB, folder, LABEL, uid=1000, root=root, run=tools) as path:
        assert path is None
    assert tools.ran == []


def test_only_what_is_missing_is_made_and_all_of_it_removed(root, folder, tools):
    write(root / "proc/swaps", f"{HEADER}/dev/vdb partition 2048 1024 -2\n")
    with ensure_swap(4 * MIB, folder, LABEL, uid=0, root=root, run=tools) as path:
        assert path is not None
        assert path.parent == folder
        assert path.stat().st_size == 4 * MIB  # 3 are missing, 1 is to spare
        assert free_swap_bytes(root) == 5 * MIB
        assert owner_of(path) == RunLabel("run_1", LABEL.host, LABEL.pid, LABEL.start_ticks)
    assert list(folder.iterdir()) == []
    assert tools.ran == ["mkswap", "swapon", "swapoff"]
    assert set(tools.modes) == {0o600}
    assert free_swap_bytes(root) == MIB


def test_it_is_removed_when_the_body_fails(root, folder, tools):
    with (
        pytest.raises(KeyboardInterrupt),
        ensure_swap(MIB, folder, LABEL, uid=0, root=root, run=tools),
    ):
        raise KeyboardInterrupt
    assert list(folder.iterdir()) == []
    assert free_swap_bytes(root) == 0


@pytest.mark.parametrize(
    ("uid", "may_make", "mend"), [(1000, True, "run as root"), (0, False, "make_swap=true as root")]
)
def test_without_leave_or_rights_it_is_refused_with_the_commands(
    root, folder, tools, uid, may_make, mend
):
    enter = ensure_swap(3 * MIB, folder, LABEL, may_make=may_make, uid=uid, root=root, run=tools)
    with pytest.raises(ConfigError) as caught, enter:
        pass
    words = str(caught.value)
    assert words.startswith("swap: the devices need 3145728 bytes, this host has 0 free; ")
    assert mend in words
    assert f"fallocate -l 3M '{folder}/swapfile'" in words
    assert "\n" not in words
    assert list(folder.iterdir()) == []


def test_a_file_system_that_cannot_swap_to_reserved_space_gets_zeros(root, folder):
    tools = FakeTools(root, swapon=1)
    with ensure_swap(5 * MIB, folder, LABEL, uid=0, root=root, run=tools) as path:
        assert path is not None
        assert path.stat().st_blocks * 512 >= 6 * MIB
    assert tools.ran == ["mkswap", "swapon", "mkswap", "swapon", "swapoff"]


def test_a_file_system_that_cannot_reserve_space_gets_zeros(root, folder, tools, monkeypatch):
    def refuse(fd: int, offset: int, size: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with ensure_swap(MIB, folder, LABEL, uid=0, root=root, run=tools) as path:
        assert path is not None
        assert path.stat().st_size == 2 * MIB


@pytest.mark.parametrize(("tool", "times"), [("mkswap", 1), ("swapon", 2)])
def test_what_cannot_be_made_is_an_error_and_leaves_nothing(root, folder, tool, times):
    tools = FakeTools(root, **{tool: times})
    with (
        pytest.raises(DeviceError, match=f"swap: {tool} .*: it fails"),
        ensure_swap(MIB, folder, LABEL, uid=0, root=root, run=tools),
    ):
        pass
    assert list(folder.iterdir()) == []


def test_a_disk_without_room_is_refused_before_anything_is_written(root, folder, tools):
    with (
        pytest.raises(DeviceError, match=r"put weights.dir on a larger disk"),
        ensure_swap(1 << 60, folder, LABEL, uid=0, root=root, run=tools),
    ):
        pass
    assert tools.ran == []
    assert list(folder.iterdir()) == []


def test_a_file_that_is_there_is_not_used(root, folder, tools):
    mine = RunLabel("run-1", LABEL.host, os.getpid(), start_ticks(os.getpid()) or 0)
    (folder / swap_name(mine)).symlink_to("/etc/passwd")
    with (
        pytest.raises(DeviceError, match="File exists"),
        ensure_swap(MIB, folder, mine, uid=0, root=root, run=tools),
    ):
        pass
    assert tools.ran == []
    assert [path.name for path in folder.iterdir()] == [swap_name(mine)]


def test_files_of_dead_runs_are_removed_and_no_others(root, folder, tools):
    living = RunLabel("b", LABEL.host, os.getpid(), start_ticks(os.getpid()) or 0)
    same_number = RunLabel("c", LABEL.host, os.getpid(), 1)
    elsewhere = RunLabel("d", "another", LABEL.pid, 1)
    kept = [swap_name(living), swap_name(elsewhere), "tpi-lab-swap-1-2.swap", "swapfile"]
    for name in (*kept, swap_name(LABEL), swap_name(same_number)):
        (folder / name).touch()
    link = folder / swap_name(RunLabel("e", LABEL.host, LABEL.pid, 3))
    link.symlink_to(folder / "swapfile")
    active = folder / swap_name(LABEL)
    write(root / "proc/swaps", f"{HEADER}{str(active).replace(' ', chr(92) + '040')} file 0 0 -2\n")
    tools.fails["swapoff"] = 1
    (line,) = [line for line in reap_swap(folder, root=root, run=tools) if "not be" in line]
    assert line.startswith(f"swap file {active}, left by an earlier run: could not be removed")
    write(root / "proc/swaps", HEADER)
    assert reap_swap(folder, root=root, run=tools) == [
        f"swap file {active}, left by an earlier run: removed"
    ]
    assert sorted(path.name for path in folder.iterdir()) == sorted([*kept, link.name])


def test_active_files_of_dead_runs_are_found_in_other_folders_too(root, tmp_path):
    path = tmp_path / swap_name(LABEL)
    write(root / "proc/swaps", f"{HEADER}{path} file 64 0 -2\n")
    assert leftover_swap(tmp_path / "nowhere", root=root) == [path]


def test_a_new_run_removes_what_dead_ones_left(root, folder, tools):
    old = RunLabel("old", LABEL.host, LABEL.pid, 1)
    (folder / swap_name(old)).touch()
    with ensure_swap(MIB, folder, LABEL, uid=0, root=root, run=tools) as path:
        assert list(folder.iterdir()) == [path]


def test_names_cannot_leave_the_folder():
    label = RunLabel("../../x y", "ho-st/1", 5, 6)
    name = swap_name(label)
    assert name == "tpi-lab-swap-ho_st_1-5-6-______x_y.swap"
    assert owner_of(Path(name)) == RunLabel("______x_y", "ho_st_1", 5, 6)


def test_a_kernel_without_swap_is_a_host_without(tmp_path):
    assert swap_areas(tmp_path) == []


@pytest.mark.parametrize(
    ("files", "word"),
    [
        (["sys/fs/cgroup/memory/memory.memsw.limit_in_bytes"], None),
        (["sys/fs/cgroup/memory/memory.limit_in_bytes"], "memory.memsw.limit_in_bytes"),
        (["proc/swaps", "sys/fs/cgroup/a/memory.max", "sys/fs/cgroup/a/memory.swap.max"], None),
        (["proc/swaps", "sys/fs/cgroup/a/memory.max"], "memory.swap.max"),
        (["proc/swaps", "sys/fs/cgroup/cgroup.controllers"], None),  # no group to tell by
        (["sys/fs/cgroup/a/memory.max"], "built without swap"),
    ],
)
def test_whether_the_kernel_accounts_swap(tmp_path, files, word):
    for name in files:
        write(tmp_path / name, "")
    problem = accounting_problem(tmp_path)
    assert problem is None if word is None else word in str(problem)


def test_a_kernel_that_does_not_account_swap_is_refused(root, folder, tools):
    (root / "sys/fs/cgroup/memory/memory.memsw.limit_in_bytes").unlink()
    enter = ensure_swap(MIB, folder, LABEL, uid=0, root=root, run=tools)
    with pytest.raises(ConfigError, match=r"swapaccount=1, or set device.swap=0"), enter:
        pass


def test_tools_that_fail_or_are_missing_are_one_line():
    with pytest.raises(DeviceError, match=r"swap: no-such-tool: .*apt-get install"):
        run_tool(["no-such-tool"], 5)
    with pytest.raises(DeviceError, match=r"swap: ls /nowhere-at-all: .*No such file"):
        run_tool(["ls", "/nowhere-at-all"], 5)
    with pytest.raises(DeviceError, match=r"not done after 0.05 s"):
        run_tool([sys.executable, "-S", "-c", "import time; time.sleep(60)"], 0.05)


EATS = "import sys; x = b'x' * ({size} << 20); print('full', flush=True); sys.stdin.read()"
HARNESS = (
    "import sys\n"
    "from pathlib import Path\n"
    "from testbed.host.label import RunLabel\n"
    "from testbed.limits.swap import ensure_swap, free_swap_bytes\n"
    "need = free_swap_bytes() + (64 << 20)\n"
    "with ensure_swap(need, Path(sys.argv[1]), RunLabel.mine('test')) as path:\n"
    "    print(path, flush=True)\n"
    "    sys.stdin.read()\n"
)


@pytest.fixture
def disk_folder(tmp_path) -> Iterator[Path]:
    """Swap needs a real file system below; whatever happens, nothing of ours stays active."""
    yield tmp_path
    for path in tmp_path.glob("tpi-lab-swap-*"):
        subprocess.run(["/sbin/swapoff", path], check=False, capture_output=True)


@pytest.mark.docker
@pytest.mark.timeout(60)
def test_real_swap_is_on_within_and_off_after(disk_folder):
    before = swap_areas()
    need = free_swap_bytes() + 64 * MIB
    with ensure_swap(need, disk_folder, RunLabel.mine("test")) as path:
        (area,) = [area for area in swap_areas() if area.path == str(path)]
        assert 64 * MIB <= area.size_bytes < 66 * MIB
        assert free_swap_bytes() >= need
    assert [a.path for a in swap_areas()] == [a.path for a in before]
    assert list(disk_folder.iterdir()) == []


@pytest.mark.docker
@pytest.mark.timeout(60)
def test_real_swap_of_a_killed_harness_is_found_and_removed(disk_folder):
    root = Path(__file__).parents[3]
    with subprocess.Popen(
        [sys.executable, "-c", HARNESS, str(disk_folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=root,
        text=True,
    ) as harness:
        assert harness.stdout is not None
        path = Path(harness.stdout.readline().strip())
        assert str(path) in [area.path for area in swap_areas()]
        assert reap_swap(disk_folder) == []  # it lives
        harness.send_signal(signal.SIGKILL)
        harness.wait()
    assert reap_swap(disk_folder) == [f"swap file {path}, left by an earlier run: removed"]
    assert str(path) not in [area.path for area in swap_areas()]
    assert not path.exists()


@pytest.mark.docker
@pytest.mark.timeout(120)
def test_a_device_that_needs_swap_gets_it_and_no_more(disk_folder):
    """120 MiB fit in 64 of memory and 96 of swap; 200 do not, and are its own out of memory."""
    limits = DeviceLimits(memory=64 * MIB, swap=96 * MIB)
    with (
        ensure_swap(free_swap_bytes() + 96 * MIB, disk_folder, RunLabel.mine("test")),
        make_bed(disk_folder / "bed", limits) as bed,
    ):
        device, inbox = bed.up(1)[0], make_inbox()
        start(device, inbox, EATS.format(size=120))
        assert read_line(inbox) == b"full"
        assert device.cgroup.swap_limit == 96 * MIB
        assert device.cgroup.swap_bytes > 40 * MIB
        before = take_snapshot([device.cgroup], dict)
        assert before.swapped_out > 40 * MIB
        start(device, inbox, EATS.format(size=200))
        assert read_to_exit(inbox)[1].oom
    assert not [area for area in swap_areas() if area.path.startswith(str(disk_folder))]
