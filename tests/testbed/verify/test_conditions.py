"""What two looks at the counters say of the time between them."""

import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from testbed.base import DeviceError
from testbed.limits.cgroup import open_cgroup
from testbed.verify.conditions import conditions_between
from testbed.verify.host_counters import CounterSnapshot, DeviceCounters, own_cpu_s, take_snapshot
from tests.testbed.cgroups import make_v1, make_v2, write

PORT = {"up_bytes": 1000, "up_dropped": 0, "up_lost": 0, "down_dropped": 0, "down_lost": 0}
TCP = {"RetransSegs": 4, "TCPSynRetrans": 0, "OutSegs": 100}
LATE_US = {"p50": 5.0, "p99": 60.0, "max": 900.0}
BEGIN = CounterSnapshot(
    t_s=100.0,
    busy_s=50.0,
    steal_s=1.0,
    own_s=3.0,
    swapped_in=4096,
    swapped_out=8192,
    devices=(DeviceCounters(10.0, 200, 20, 1.0), DeviceCounters(11.0, 200, 20, 1.0)),
    network={"backend": "switch-c", "ports": [PORT, PORT], "tcp": [TCP, TCP], "late_us": LATE_US},
)
END = replace(
    BEGIN,
    t_s=110.0,
    busy_s=65.0,
    steal_s=2.0,
    own_s=4.0,
    devices=(DeviceCounters(15.0, 2200, 520, 3.5), DeviceCounters(16.0, 2200, 20, 1.0)),
)


def with_tcp(
    look: CounterSnapshot, *counters: dict[str, int] | None, **port: int
) -> CounterSnapshot:
    network = {**look.network, "tcp": list(counters), "ports": [{**PORT, **port}, PORT]}
    return replace(look, network=network)


def test_differences_of_a_quiet_repeat():
    found = conditions_between(BEGIN, END, dilation=8)
    assert found.problems == ()
    assert found.wall_s == 10
    assert found.foreign_cores == pytest.approx((15 - 10 - 1) / 10)
    assert found.own_cores == pytest.approx(0.1)
    assert found.steal_cores == pytest.approx(0.1)
    assert (found.swapped_in, found.swapped_out) == (0, 0)
    assert found.late_us == LATE_US
    assert found.unexplained_retransmissions == 0
    first, second = found.devices
    assert (first.cpu_s, first.throttled_s) == (5.0, 2.5)
    assert (first.throttled_share, second.throttled_share) == (0.25, 0.0)
    assert first.retransmissions == 0


def test_they_are_json():
    found = json.loads(json.dumps(asdict(conditions_between(BEGIN, END))))
    assert found["devices"][0]["throttled_share"] == 0.25
    assert found["problems"] == []


def test_coarse_clocks_never_make_foreign_load_negative():
    assert conditions_between(BEGIN, replace(END, busy_s=50.0)).foreign_cores == 0


def test_two_looks_at_the_same_moment_divide_by_nothing():
    assert conditions_between(BEGIN, BEGIN).devices[0].throttled_share == 0


def test_segments_sent_again_without_a_loss_are_a_problem():
    end = with_tcp(END, {**TCP, "RetransSegs": 9}, TCP)
    found = conditions_between(BEGIN, end)
    assert found.unexplained_retransmissions == 5
    assert found.devices[0].retransmissions == 5
    (problem,) = found.problems
    assert problem.startswith("links: TCP sent 5 segments again although no link dropped one")


@pytest.mark.parametrize("why", ["dropped", "allowed", "syn"])
def test_segments_sent_again_for_a_reason_are_none(why):
    tcp = {**TCP, "RetransSegs": 9, "TCPSynRetrans": 5 if why == "syn" else 0}
    end = with_tcp(END, tcp, TCP, up_dropped=5 if why == "dropped" else 0)
    found = conditions_between(BEGIN, end, may_resend=why == "allowed")
    assert found.problems == ()
    assert found.devices[0].retransmissions == 5


def test_a_device_whose_counters_are_gone_leaves_it_unknown():
    found = conditions_between(BEGIN, with_tcp(END, None, TCP))
    assert found.unexplained_retransmissions is None
    assert [d.retransmissions for d in found.devices] == [None, 0]


def test_one_device_without_links():
    begin = replace(BEGIN, devices=BEGIN.devices[:1], network={"backend": "none"})
    end = replace(END, devices=END.devices[:1], network={"backend": "none"})
    found = conditions_between(begin, end)
    assert found.unexplained_retransmissions is None
    assert found.late_us is None
    assert found.devices[0].retransmissions is None


@pytest.mark.parametrize(
    ("dilation", "may_swap", "is_problem"), [(1, True, False), (8, True, True), (8, False, False)]
)
def test_swapping_is_a_problem_where_time_is_dilated(dilation, may_swap, is_problem):
    end = replace(END, swapped_out=8192 + 4096, swapped_in=4096 + 8192)
    found = conditions_between(BEGIN, end, dilation=dilation, may_swap=may_swap)
    assert (found.swapped_in, found.swapped_out) == (8192, 4096)
    assert [p.split(":")[0] for p in found.problems] == ["swap_undilated"] * is_problem


def make_host(root: Path) -> Path:
    """A /proc with this process, one child of it and one of others."""
    proc = root / "proc"
    write(proc / "stat", "cpu  1000 200 300 5000 10 20 30 400 0 0\ncpu0 1 1 1 1\n")
    write(proc / "vmstat", "nr_free_pages 7\npswpin 3\npswpout 5\n")
    write_process(proc, os.getpid(), [100, 20, 3, 4], children="77 ")
    write_process(proc, 77, [10, 10, 0, 0])
    write_process(proc, 78, [9999, 9999, 0, 0])
    return proc


def write_process(proc: Path, pid: int, ticks: list[int], children: str = "") -> None:
    times = " ".join(map(str, ticks))
    write(proc / f"{pid}/stat", f"{pid} (a) b) S 1 1 1 0 -1 0 0 0 0 0 {times} 20 0 1 0 55 0\n")
    write(proc / f"{pid}/task/{pid}/children", children)


@pytest.mark.parametrize("make", [make_v1, make_v2])
def test_a_look_reads_host_devices_and_links(tmp_path, make):
    make(tmp_path)
    cgroup = open_cgroup(100, tmp_path)
    proc = make_host(tmp_path)
    counters: dict[str, Any] = {"backend": "none"}
    found = take_snapshot([cgroup], lambda: counters, proc=proc, clock=lambda: 5.0)
    tick_s, page = 1 / os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
    assert (found.t_s, found.network) == (5.0, counters)
    assert found.busy_s == pytest.approx(1500 * tick_s)
    assert found.steal_s == pytest.approx(400 * tick_s)
    assert found.own_s == pytest.approx(147 * tick_s)
    assert (found.swapped_in, found.swapped_out) == (3 * page, 5 * page)
    (device,) = found.devices
    assert (device.periods, device.throttled_periods) == (32, 22)
    assert device.throttled_s == pytest.approx(0.108976, rel=1e-4)


def test_a_process_that_is_gone_costs_nothing(tmp_path):
    assert own_cpu_s(4242, tmp_path) == 0


def test_a_host_without_the_files_is_one_error(tmp_path):
    with pytest.raises(DeviceError, match=r"conditions: cannot read .*stat"):
        take_snapshot([], dict, proc=tmp_path)


def test_this_host_can_be_looked_at():
    begin = take_snapshot([], dict)
    end = take_snapshot([], dict)
    found = conditions_between(begin, end)
    assert found.problems == ()
    assert end.own_s >= begin.own_s > 0
