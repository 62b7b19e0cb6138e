"""Reading memory counters from fake /proc trees."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from testbed.host.procfs import (
    PeakSampler,
    host_swap_bytes,
    number_after,
    process_tree,
    read_memory,
    session_of,
)
from tpi.program.procfs import oom_kills


def write_process(
    proc: Path, pid: int, hwm_kib: int, anon_kib: int, children: Sequence[int] = ()
) -> None:
    task = proc / str(pid) / "task" / str(pid)
    task.mkdir(parents=True, exist_ok=True)
    (task / "children").write_text(" ".join(map(str, children)))
    (proc / str(pid) / "status").write_text(
        f"Name:\tx: y\nVmHWM:\t  {hwm_kib} kB\nRssAnon:\t {anon_kib} kB\n"
    )


def test_memory_is_in_bytes(tmp_path):
    write_process(tmp_path, 7, 200, 100)
    assert read_memory(7, tmp_path) == (200 * 1024, 100 * 1024)


def test_process_that_is_gone_or_a_zombie_has_no_memory(tmp_path):
    (tmp_path / "8").mkdir()
    (tmp_path / "8" / "status").write_text("Name:\tx\nState:\tZ (zombie)\n")
    assert read_memory(7, tmp_path) is None
    assert read_memory(8, tmp_path) is None


def test_tree_holds_grandchildren(tmp_path):
    write_process(tmp_path, 1, 1, 1, [2, 3])
    write_process(tmp_path, 2, 1, 1)
    write_process(tmp_path, 3, 1, 1, [4])
    assert sorted(process_tree(1, tmp_path)) == [1, 2, 3, 4]


def test_peaks_sum_the_tree_and_outlive_it(tmp_path):
    write_process(tmp_path, 1, 100, 60, [2])
    write_process(tmp_path, 2, 50, 40)
    pids: list[int] = [1]
    sampler = PeakSampler(lambda: pids, tmp_path)
    sampler.sample()
    write_process(tmp_path, 1, 120, 30)
    sampler.sample()
    pids.clear()
    sampler.sample()
    assert (sampler.rss_hwm, sampler.anon_peak) == (170 * 1024, 100 * 1024)


def test_peak_of_the_parent_before_exec_is_forgotten(tmp_path):
    write_process(tmp_path, 1, 500, 400)
    sampler = PeakSampler(lambda: [1], tmp_path)
    sampler.sample()
    write_process(tmp_path, 1, 20, 10)
    sampler.sample()
    assert sampler.rss_hwm == 20 * 1024


def test_oom_kills_are_counted(tmp_path):
    (tmp_path / "vmstat").write_text("pgfault 3\noom_kill 2\n")
    assert oom_kills(tmp_path) == 2
    assert oom_kills(tmp_path / "none") == 0


def test_reset_forgets_peaks_and_whom_they_came_from(tmp_path):
    write_process(tmp_path, 1, 100, 60)
    sampler = PeakSampler(lambda: [1], tmp_path)
    sampler.sample()
    write_process(tmp_path, 1, 100, 30)
    sampler.reset()
    assert (sampler.rss_hwm, sampler.anon_peak, sampler.num_samples) == (0, 0, 0)
    sampler.sample()
    assert (sampler.anon_peak, sampler.num_samples) == (30 * 1024, 1)


def test_session_is_read_behind_any_name(tmp_path):
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "stat").write_text("7 (a) b (c) S 1 5 6 0 -1\n")
    assert session_of(7, tmp_path) == 6
    assert session_of(8, tmp_path) is None


@pytest.mark.parametrize(
    ("name", "number"),
    [(b"anon ", 1), (b"file ", 22), (b"total_file ", 3), (b"le ", None), (b"none ", None)],
)
def test_number_is_that_of_the_whole_name(name, number):
    assert number_after(b"anon 1\nfile 22\ntotal_file 3\n", name) == number


def test_swap_of_the_host(tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal: 5 kB\nSwapTotal:    2 kB\nSwapFree: 1 kB\n")
    assert host_swap_bytes(tmp_path) == 2048
