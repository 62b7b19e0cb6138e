"""Programs that misbehave in every way a system may: reported, stopped, reaped on any backend."""

import json
import signal
import threading

import pytest

from testbed.base import DeviceError
from testbed.local.local import LocalTestbed
from tests.testbed.beds import make_bed
from tests.testbed.programs import (
    HOLDS_50_MIB,
    OBEDIENT,
    PARENT,
    STUBBORN,
    host_pid,
    is_gone,
    read_line,
    read_to_exit,
    start,
)
from tpi.program.events import MAX_LINE_BYTES
from tpi.program.process import MAX_WAITING_LINES, make_inbox


@pytest.fixture(params=["local", pytest.param("docker", marks=pytest.mark.docker)])
def testbed(request, tmp_path):
    bed = LocalTestbed(tmp_path) if request.param == "local" else make_bed(tmp_path)
    with bed:
        yield bed


@pytest.fixture
def device(testbed):
    return testbed.up(1)[0]


@pytest.fixture
def inbox():
    return make_inbox()


def test_lines_then_exit_arrive_in_order(device, inbox):
    process = start(device, inbox, "import sys; print('a'); print('b', end=''); sys.exit(7)")
    lines, end = read_to_exit(inbox)
    assert lines == [b"a", b"b"]
    assert (end.code, end.stopped, end.oom, end.host_oom) == (7, False, False, False)
    assert end.t_ns > process.start_ns
    assert process.wait(1) == end
    assert is_gone(process.pid)


def test_spec_is_written_where_the_program_finds_it(device, inbox):
    program = "import json, sys; print(json.load(open(sys.argv[-1]))['rank'])"
    for rank in (3, 4):
        start(device, inbox, program, {"rank": rank})
        assert read_to_exit(inbox)[0] == [str(rank).encode()]


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


def test_output_and_log_do_not_mix(device, inbox):
    program = (
        "import sys\n"
        "for i in range(200):\n"
        "    print(i, flush=True)\n"
        "    print('log', i, file=sys.stderr, flush=True)"
    )
    start(device, inbox, program)
    lines, end = read_to_exit(inbox)
    assert [int(line) for line in lines] == list(range(200))
    assert end.log_tail.strip().splitlines()[-1] == "log 199"


def test_crash_by_signal_is_a_negative_code(device, inbox):
    start(device, inbox, "import os; os.kill(os.getpid(), 11)")
    assert read_to_exit(inbox)[1].code == -signal.SIGSEGV


def test_kill_by_somebody_else_is_not_out_of_memory(device, inbox):
    process = start(device, inbox, OBEDIENT)
    read_line(inbox)
    process.signal(signal.SIGKILL)
    _, end = read_to_exit(inbox)
    assert (end.code, end.oom, end.host_oom) == (-signal.SIGKILL, False, False)
    assert not end.stopped


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
    child = host_pid(device, int(read_line(inbox)))
    process.stop(grace_s=0.05)
    assert is_gone(child)


def test_children_end_with_a_program_that_ended_by_itself(device, inbox):
    process = start(device, inbox, PARENT.replace("sys.stdin.read()", "sys.stdin.readline()"))
    child = host_pid(device, int(read_line(inbox)))
    process.send("go")
    _, end = read_to_exit(inbox)
    assert end.code == 0
    assert is_gone(child)


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
    start(device, inbox, "print('another')")
    assert read_line(inbox) == b"another"


def test_down_stops_everything_and_may_run_twice(testbed, inbox):
    processes = [start(device, inbox, OBEDIENT) for device in testbed.up(3)]
    testbed.down()
    testbed.down()
    assert all(is_gone(p.pid) for p in processes)
    assert not [t for t in threading.enumerate() if t.name == "meter"]


def test_up_again_gives_fresh_devices(testbed, inbox):
    old = start(testbed.up(1)[0], inbox, OBEDIENT)
    read_line(inbox)
    device = testbed.up(2)[1]
    assert is_gone(old.pid)
    assert read_to_exit(inbox)[1].stopped
    start(device, inbox, "print('x')")
    assert read_line(inbox) == b"x"


def test_devices_are_numbered_and_share_the_inbox(testbed, inbox):
    for device in testbed.up(3):
        start(device, inbox, "print('x')")
    outputs = [inbox.get(timeout=10) for _ in range(6)]
    assert sorted(o.device for o in outputs if o.exit) == [0, 1, 2]


def test_no_devices_are_refused(testbed):
    with pytest.raises(DeviceError, match="0"):
        testbed.up(0)


def test_peak_memory_is_seen_after_it_was_freed_and_after_down(testbed, device, inbox):
    process = start(device, inbox, HOLDS_50_MIB)
    read_line(inbox)
    before = device.meter()
    process.send("go")
    read_line(inbox)
    after = device.meter()
    assert 50 << 20 < before.rss_hwm < 100 << 20
    assert 50 << 20 < before.anon_peak < 100 << 20
    # The kernel sums its counters roughly: the marks move by some pages.
    assert after.rss_hwm == pytest.approx(before.rss_hwm, abs=1 << 20)
    assert after.anon_peak == pytest.approx(before.anon_peak, abs=1 << 20)
    testbed.down()
    assert device.meter().anon_peak == after.anon_peak


def test_programs_get_threads_and_no_network(device, inbox):
    program = "import json, os; print(json.dumps(dict(os.environ)))"
    start(device, inbox, program)
    env = json.loads(read_line(inbox))
    assert (env["HF_HUB_OFFLINE"], env["PYTHONUNBUFFERED"]) == ("1", "1")
    assert {env[f"{k}_NUM_THREADS"] for k in ("OMP", "MKL", "OPENBLAS")} == {"1"}


def test_programs_find_this_source_tree(device, inbox):
    start(device, inbox, "import tpi.errors; print(tpi.errors.EXIT_INTERRUPTED)")
    assert read_to_exit(inbox)[0] == [b"130"]


def test_free_port_may_be_listened_on(device, inbox):
    port = device.free_port()
    program = f"import socket; socket.create_server(('{device.address}', {port})); print('ok')"
    start(device, inbox, program)
    assert read_line(inbox) == b"ok"
