"""Links through the switch: its command line, its life, its answers; with a fake that records."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from testbed.base import DeviceError
from testbed.links.link import LinkSpec
from testbed.links.switch_network import (
    SwitchNetwork,
    SwitchProcess,
    fault_command,
    interface_names,
    port_argument,
)
from tpi.errors import ConfigError

_FAKE = Path(__file__).parents[1].joinpath("fake_switch.py")
_LINKS = [LinkSpec(0.002, 300e6), LinkSpec(0.0025, None, 0.01, 4096)]


@pytest.fixture
def record(tmp_path):
    return tmp_path / "record"


def _command(record: Path) -> list[str]:
    return [sys.executable, "-I", str(_FAKE), str(record)]


def test_port_argument():
    assert port_argument("a", _LINKS[0]) == "a,2000000,300000000,1048576,0"
    assert port_argument("b", _LINKS[1]) == "b,2500000,0,4096,10000"


def test_interface_names_fit_the_kernel():
    names = interface_names("0123456789abcdef", 51200)
    assert names[:2] == ["tpi0123450", "tpi0123451"]
    assert max(map(len, names)) <= 15


@pytest.mark.parametrize("label", ["", "12345", "xyzxyz", "ABCDEF"])
def test_interface_names_of_a_bad_label_are_refused(label):
    with pytest.raises(DeviceError, match="6 hex digits"):
        interface_names(label, 1)


@pytest.mark.parametrize(
    ("kind", "value", "command"),
    [
        ("cut", 1, "fault 3 cut 1"),
        ("delay", 0.25, "fault 3 delay 250000000"),
        ("drop", 0.125, "fault 3 drop 125000"),
        ("drop", -1, "fault 3 drop -1"),
        ("duplicate", 1.0, "fault 3 duplicate 1000000"),
    ],
)
def test_fault_command(kind, value, command):
    assert fault_command(3, kind, value) == command


def test_network_starts_tells_faults_counts_and_ends(record):
    network = SwitchNetwork(_command(record), _LINKS, dilation=2.0, label="abcdef99")
    assert network.backend == "switch-fake"
    network.fault(1, "drop", 0.5)
    with pytest.raises(ConfigError, match="reorder"):
        network.fault(1, "reorder", 1)
    network.verify()
    counters = network.counters()
    assert counters["packets"] == 7
    assert counters["ports"] == [{"up_dropped": 0, "down_dropped": 0}] * 2
    assert counters["unexplained_retransmissions"] == 0
    assert counters["tcp"] == []
    network.close()
    network.close()
    assert record.read_text().splitlines() == [
        "tpiabcdef0,2000000,300000000,1048576,0 tpiabcdef1,2500000,0,4096,10000",
        "fault 1 drop 500000",
        "stats",
        "end",
    ]


def test_switch_that_was_killed_is_noticed(record):
    network = SwitchNetwork(_command(record), _LINKS, dilation=1.0, label="abcdef")
    os.kill(network._switch._popen.pid, signal.SIGKILL)
    os.waitid(os.P_PID, network._switch._popen.pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(DeviceError, match=r"switch: ended \(exit status -9\)"):
        network.verify()
    with pytest.raises(DeviceError, match="switch: ended"):
        network.attach(0, os.getpid())
    with pytest.raises(DeviceError, match="switch: ended"):
        network.counters()
    network.close()
    with pytest.raises(DeviceError, match="switch: ended"):
        network.fault(0, "cut", 1)


def test_switch_that_ends_at_once_has_its_last_words_shown(record):
    with pytest.raises(DeviceError, match=r"ended \(exit status 4\): no such device"):
        SwitchProcess([*_command(record), "DIES"])


def test_switch_that_says_nothing_is_ended_at_the_deadline(record):
    with pytest.raises(DeviceError, match="no 'ready' after"):
        SwitchProcess([*_command(record), "LATE"], ready_s=0.2)


def test_switch_that_says_something_else_is_refused(record):
    with pytest.raises(DeviceError, match="expected 'ready', got: not an event: b'hello"):
        SwitchProcess([*_command(record), "GARBAGE"])


def test_switch_that_is_missing_is_said(tmp_path):
    with pytest.raises(DeviceError, match="cannot start"):
        SwitchProcess([str(tmp_path / "none")])


def test_refusal_is_passed_on_and_the_next_command_works(record):
    switch = SwitchProcess([*_command(record), "port"])
    with pytest.raises(DeviceError, match="unknown: dance"):
        switch.ask("dance", "dance")
    assert switch.ask("stats", "stats").packets == 7
    switch.close()


def test_switch_that_does_not_answer_is_ended(record):
    switch = SwitchProcess([*_command(record), "MUTE"], answer_s=0.2)
    with pytest.raises(DeviceError, match="no 'stats' after"):
        switch.ask("stats", "stats")
    with pytest.raises(DeviceError, match="switch: ended"):
        switch.ask("stats", "stats")
    switch.close()


def test_other_children_do_not_keep_the_switch_alive(record):
    switch = SwitchProcess([*_command(record), "port"])
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        switch.close()
        assert record.read_text().splitlines()[-1] == "end"
        assert other.poll() is None
        other.kill()
