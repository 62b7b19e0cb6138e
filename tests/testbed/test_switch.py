"""The switch's program in both languages: its life, its lines, what it must survive; needs root."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.links.link import LinkSpec
from testbed.switch.build import switch_command
from testbed.switch.model import Random
from tests.testbed.namespaces import (
    ANSWER_S,
    Namespace,
    SwitchLinks,
    SwitchProcess,
    end,
    know_each_other,
    port_text,
)
from tests.testbed.test_switch_conformance import PROGRAM, Sink, send, transfer
from tests.testbed.test_switch_protocol import BAD_COMMANDS

pytestmark = [pytest.mark.docker, pytest.mark.timeout(60)]

FREE = LinkSpec(delay_s=0.001)
NET = Path("/sys/class/net")


@pytest.fixture(params=["c", "python"])
def backend(request) -> str:
    name = request.param
    assert isinstance(name, str)
    return name


@pytest.fixture
def switch(backend) -> Iterator[SwitchProcess]:
    """A switch with two ports that nobody is attached to."""
    names = [f"tz{os.getpid():x}x{i}" for i in range(2)]
    process = SwitchProcess(switch_command(backend), [port_text(name, FREE) for name in names])
    yield process
    process.close()


def taps() -> set[str]:
    return {path.name for path in NET.iterdir() if path.name.startswith(f"tz{os.getpid():x}x")}


def test_it_says_what_it_is(switch, backend):
    assert switch.ready["event"] == "ready"
    assert switch.ready["backend"] == backend
    assert isinstance(switch.ready["fifo"], bool)
    assert len(taps()) == 2


def test_ports_have_their_addresses(switch):
    addresses = sorted((NET / tap / "address").read_text().strip() for tap in taps())
    assert addresses == ["02:00:00:00:00:01", "02:00:00:00:00:02"]


def test_end_of_input_ends_it_and_its_devices(switch):
    switch.popen.stdin.close()
    assert switch.popen.wait(ANSWER_S) == 0
    assert taps() == set()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_it_and_its_devices(switch, number):
    switch.popen.send_signal(number)
    assert switch.popen.wait(ANSWER_S) == -number
    assert taps() == set()


def test_the_end_of_who_started_it_ends_it(backend):
    """Its lease is a pipe: a starter that is killed cannot close it in order."""
    command = [*switch_command(backend), port_text(f"tz{os.getpid():x}x9", FREE)]
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER, *command], stdout=subprocess.PIPE, text=True
    )
    assert starter.stdout is not None
    assert json.loads(starter.stdout.readline())["event"] == "ready"
    assert len(taps()) == 1
    starter.kill()
    assert starter.stdout.read() == ""  # the switch had it open as well
    starter.wait()
    starter.stdout.close()
    assert taps() == set()


STARTER = """
import subprocess, sys
switch = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE)
switch.wait()
"""


def test_a_name_that_is_taken_is_an_error(switch, backend):
    second = subprocess.run(
        [*switch_command(backend), port_text(sorted(taps())[0], FREE)],
        stdin=subprocess.PIPE,
        capture_output=True,
        text=True,
        timeout=ANSWER_S,
    )
    assert second.returncode == 1
    answer = json.loads(second.stdout)
    assert answer["event"] == "error"
    assert "busy" in answer["message"]


def test_input_that_is_no_pipe_is_refused(backend):
    done = subprocess.run(
        [*switch_command(backend), port_text(f"tz{os.getpid():x}x8", FREE)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=ANSWER_S,
    )
    assert done.returncode == 2
    assert "must be a pipe" in json.loads(done.stdout)["message"]


def test_bad_commands_are_answered_and_it_goes_on(switch):
    for command in [*BAD_COMMANDS, "x" * 5000, "fault " * 1000]:
        answer = switch.ask(command)
        assert answer["event"] == "error", command
        assert answer["message"]
    assert switch.ask("stats")["event"] == "stats"


def test_many_commands_at_once_are_all_answered(switch):
    switch.popen.stdin.write(b"stats\nfault 1 cut 1\nnothing\n" * 20)
    events = [switch.read_line()["event"] for _ in range(60)]
    assert events == ["stats", "fault", "error"] * 20


def test_stats_add_up(backend):
    with SwitchLinks([LinkSpec(0.001, 100e6)] * 3, backend) as links:
        know_each_other(links.nodes)
        transfer(links.nodes[1:], links.nodes[0], count=50)
        stats = links.counters()
    late, ports = stats["late_us"], stats["ports"]
    assert 0 <= late["p50"] <= late["p99"] <= late["max"]
    assert stats["packets"] == sum(port["down_packets"] for port in ports) == 100
    assert ports[0]["down_bytes"] == sum(port["up_bytes"] for port in ports) == 150_000
    assert 0 < ports[1]["up_queue_max"] <= 75_000


def test_both_languages_lose_the_same_packets(backend):
    seed, count = 5, 200
    coin = Random(seed)
    expected = [n for n in range(count) if not coin.happens(300_000)]
    with SwitchLinks([FREE, FREE], backend, seed=seed) as links:
        know_each_other(links.nodes)
        links.fault(0, "drop", 0.3)
        got = transfer([links.nodes[0]], links.nodes[1], count=count, ip_bytes=100)
    assert [d.number for d in got] == expected


def test_a_namespace_that_ends_takes_only_its_own_port(backend):
    with SwitchLinks([FREE] * 3, backend) as links:
        a, b, c = links.nodes
        know_each_other(links.nodes)
        c.close()
        switch = links.switch.popen.pid
        before_s = cpu_s(switch)
        sink = Sink(b, 400)
        send([a], c, 20)
        send([a], b, 400, ip_bytes=100, gap_s=0.002)
        assert len(sink.take()) == 400
        # It does not spin on the descriptor of the device that is gone: 0.8 s or more have passed.
        assert cpu_s(switch) - before_s < 0.4
        assert links.counters()["ports"][2]["down_packets"] == 0


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_malformed_frames_are_dropped_and_counted(backend):
    ours = "0200000000%02x"
    short = [(ours % 2) + (ours % 1) + "0800"]  # a header alone is a packet of no bytes
    nowhere = [
        target + (ours % 1) + "0800" + "00" * 46
        for target in (ours % 1, ours % 200, "0200000000ff", "020000000000", "060000000002")
    ]
    jumbo = (ours % 2) + (ours % 1) + "88b5" + "00" * 8986
    with SwitchLinks([FREE, FREE], backend) as links:
        a, b = links.nodes
        know_each_other(links.nodes)
        for node in links.nodes:
            node.run(["ip", "link", "set", "eth1", "mtu", "9000"])
        before = links.counters()["ports"]
        a.run([*PROGRAM, "raw", "eth1", *short, *nowhere, jumbo])
        assert len(transfer([a], b, count=5)) == 5
        after = links.counters()["ports"]
    assert after[0]["up_dropped"] - before[0]["up_dropped"] == len(nowhere)
    assert after[1]["down_packets"] - before[1]["down_packets"] == len(short) + 1 + 5
    assert after[1]["down_bytes"] - before[1]["down_bytes"] == 8986 + 5 * 1500


def test_a_device_that_is_down_loses_what_is_sent_to_it(backend):
    with SwitchLinks([FREE, FREE], backend) as links:
        a, b = links.nodes
        know_each_other(links.nodes)
        b.run(["ip", "link", "set", "eth1", "down"])
        send([a], b, 10)
        b.run(["ip", "link", "set", "eth1", "up"])
        know_each_other(links.nodes)
        assert len(transfer([a], b, count=10)) == 10
        assert links.counters()["ports"][1]["down_lost"] >= 9


def test_a_flood_that_nobody_can_carry_stays_within_memory(backend):
    """A queue of any length over an unlimited link with a long delay: frames are refused."""
    with SwitchLinks([LinkSpec(delay_s=100, queue_bytes=1 << 40)] * 2, backend) as links:
        know_each_other(links.nodes)
        for _ in range(30):  # what comes faster than it is read is dropped by the kernel
            send([links.nodes[0]], links.nodes[1], 500, ip_bytes=60_000)
            if links.counters()["ports"][0]["up_dropped"]:
                break
        assert links.counters()["ports"][0]["up_dropped"] > 0
        assert resident_bytes(links.switch.popen.pid) < 400 << 20


def resident_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) << 10


def test_the_helpers_namespace_ends_with_its_pipe():
    node = Namespace()
    holder = node._holder
    assert holder.poll() is None
    end(holder)
    assert holder.returncode == 0
