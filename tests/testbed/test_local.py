"""Real processes that misbehave in every way a system may: all are reported, stopped and reaped."""

import json
import os
import select
import signal
import threading
from collections.abc import Mapping

import pytest

from testbed.base import MAX_LINE_BYTES, MAX_WAITING_LINES, DeviceError, Exit, Inbox, make_inbox
from testbed.local import LocalDevice, LocalTestbed
from testbed.process import LocalProcess

# Says that its handlers are in place, then waits for the end of its lease.
OBEDIENT = "import sys; print('up', flush=True); sys.stdin.read()"
STUBBORN = (
    "import signal, sys, time; signal.signal(15, signal.SIG_IGN); print('up'); time.sleep(60)"
)
PARENT = (
    "import subprocess, sys\n"
    "child = subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(60)'])\n"
    "print(child.pid); sys.stdin.read()"
)

HOLDS_50_MIB = (
    "import sys; x = b'x' * (50 << 20); print('up', flush=True); sys.stdin.read(3)\n"
    "del x; print('freed', flush=True); sys.stdin.read()"
)


@pytest.fixture
def testbed(tmp_path):
    with LocalTestbed(tmp_path) as bed:
        yield bed


@pytest.fixture
def device(testbed):
    return testbed.up(1)[0]


@pytest.fixture
def inbox():
    return make_inbox()


def start(
    device: LocalDevice, inbox: Inbox, program: str, spec: Mapping[str, object] | None = None
) -> LocalProcess:
    return device.run([device.python, "-S", "-c", program], inbox, spec)


def read_line(inbox: Inbox) -> bytes:
    output = inbox.get(timeout=10)
    assert output.exit is None
    return output.line


def read_to_exit(inbox: Inbox) -> tuple[list[bytes], Exit]:
    lines = []
    while (output := inbox.get(timeout=10)).exit is None:
        lines.append(output.line)
    return lines, output.exit


def is_gone(pid: int) -> bool:
    """Whether the process ends, within some seconds: a kill takes effect a moment later."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], 5)[0])
    finally:
        os.close(handle)


def test_lines_then_exit_arrive_in_order(device, inbox):
    process = start(device, inbox, "import sys; print('a'); print('b', end=''); sys.exit(7)")
    lines, end = read_to_exit(inbox)
    assert lines == [b"a", b"b"]
    assert (end.code, end.stopped, end.oom) == (7, False, False)
    assert end.t_ns > process.start_ns
    assert is_gone(process.pid)


def test_spec_is_written_where_the_program_finds_it(device, inbox):
    program = "import json, sys; print(json.load(open(sys.argv[-1]))['rank'])"
    start(device, inbox, program, {"rank": 3})
    assert read_to_exit(inbox)[0] == [b"3"]


def test_commands_reach_the_program_and_the_end_of_the_lease_ends_it(device, inbox):
    process = start(device, inbox, "import sys\nfor line in sys.stdin: print(line.strip())")
    process.send("go r0")
    assert read_line(inbox) == b"go r0"
    process.release()
    _, end = read_to_exit(inbox)
    assert (end.code, end.stopped) == (0, False)
    process.send("go r1")


def test_log_tail_comes_with_the_exit(device, inbox):
    start(device, inbox, "import sys; sys.stderr.write('x' * 9000 + 'last words'); sys.exit(1)")
    _, end = read_to_exit(inbox)
    assert end.log_tail.endswith("last words")
    assert len(end.log_tail) < 5000


def test_crash_by_signal_is_a_negative_code(device, inbox):
    start(device, inbox, "import os; os.kill(os.getpid(), 11)")
    assert read_to_exit(inbox)[1].code == -signal.SIGSEGV


def test_kill_by_somebody_else_is_not_out_of_memory(device, inbox):
    process = start(device, inbox, OBEDIENT)
    read_line(inbox)
    process.signal(signal.SIGKILL)
    _, end = read_to_exit(inbox)
    assert (end.code, end.oom, end.stopped) == (-signal.SIGKILL, False, False)


def test_program_that_ignores_sigterm_is_killed(device, inbox):
    process = start(device, inbox, STUBBORN)
    read_line(inbox)
    end = process.stop(grace_s=0.05)
    assert (end.code, end.stopped) == (-signal.SIGKILL, True)
    assert is_gone(process.pid)
    assert process.stop() == end


def test_paused_program_is_stopped(device, inbox):
    process = start(device, inbox, OBEDIENT)
    read_line(inbox)
    process.signal(signal.SIGSTOP)
    assert process.stop().stopped
    assert is_gone(process.pid)


def test_children_end_with_a_stopped_program(device, inbox):
    process = start(device, inbox, PARENT)
    child = int(read_line(inbox))
    process.stop(grace_s=0.05)
    assert is_gone(child)


def test_children_end_with_a_program_that_ended_by_itself(device, inbox):
    start(device, inbox, PARENT.replace("sys.stdin.read()", "sys.exit(0)"))
    lines, end = read_to_exit(inbox)
    assert end.code == 0
    assert is_gone(int(lines[0]))


def test_flood_on_standard_output_waits_and_is_bounded(device, inbox):
    process = start(device, inbox, "while True: print('junk' * 10)")
    lines = [read_line(inbox) for _ in range(MAX_WAITING_LINES * 2)]
    assert set(lines) == {b"junk" * 10}
    process.stop(grace_s=0.05)
    assert inbox.qsize() <= MAX_WAITING_LINES


def test_endless_line_is_cut_and_marked(device, inbox):
    start(device, inbox, f"print('x' * {5 * MAX_LINE_BYTES}); print('next')")
    output = inbox.get(timeout=10)
    assert output.truncated
    assert len(output.line) == MAX_LINE_BYTES
    assert read_line(inbox) == b"next"


def test_program_that_does_not_exist_is_a_named_error(device, inbox):
    with pytest.raises(DeviceError, match="device 0: cannot start /nonexistent"):
        device.run(["/nonexistent"], inbox)


def test_down_stops_everything_and_may_run_twice(testbed, inbox):
    processes = [start(device, inbox, OBEDIENT) for device in testbed.up(3)]
    testbed.down()
    testbed.down()
    assert all(is_gone(p.pid) for p in processes)
    assert not [t for t in threading.enumerate() if t.name == "meter"]


def test_devices_are_numbered_and_share_the_inbox(testbed, inbox):
    for device in testbed.up(3):
        start(device, inbox, "print('x')")
    outputs = [inbox.get(timeout=10) for _ in range(6)]
    assert sorted(o.device for o in outputs if o.exit) == [0, 1, 2]


def test_peak_memory_is_seen_after_it_was_freed(device, inbox):
    process = start(device, inbox, HOLDS_50_MIB)
    read_line(inbox)
    before = device.meter()
    process.send("go")
    read_line(inbox)
    after = device.meter()
    assert before.rss_hwm is not None
    assert before.anon_peak is not None
    assert 50 << 20 < before.rss_hwm < 100 << 20
    assert 50 << 20 < before.anon_peak <= before.rss_hwm
    # The kernel sums its counters roughly: the mark moves by some pages.
    assert after.rss_hwm == pytest.approx(before.rss_hwm, abs=1 << 20)
    assert after.anon_peak == before.anon_peak
    assert (after.cgroup_peak, after.words) == (None, {"cgroup_peak": "not limited"})


def test_programs_get_threads_and_no_network(tmp_path, inbox):
    program = "import json, os; print(json.dumps(dict(os.environ)))"
    with LocalTestbed(tmp_path, threads=3, env={"PATH": os.environ["PATH"], "A": "b"}) as bed:
        start(bed.up(1)[0], inbox, program)
        env = json.loads(read_line(inbox))
    assert (env["A"], env["HF_HUB_OFFLINE"], env["PYTHONUNBUFFERED"]) == ("b", "1", "1")
    assert {env[f"{k}_NUM_THREADS"] for k in ("OMP", "MKL", "OPENBLAS")} == {"3"}


def test_it_says_that_nothing_is_limited(testbed, device):
    assert "no CPU, memory, disk or link limit" in testbed.notes[0]
    assert device.facts()["limits"] == "none"
    assert device.address == "127.0.0.1"
    assert 0 < device.free_port() < 65536
