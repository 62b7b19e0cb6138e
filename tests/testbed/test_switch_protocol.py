"""The switch's command line and lines, without a switch that runs."""

import json

import pytest

from testbed.switch.model import PortSpec, Switch
from testbed.switch.protocol import CommandLines, obey, parse_arguments
from tpi.errors import ConfigError

PORT = "tap0,2000000,300000000,1048576,0"
SPEC = PortSpec("tap0", 2_000_000, 300_000_000, 1 << 20, 0)
BAD_ARGUMENTS = [
    [],
    ["--seed", "1"],
    ["--seed", "x", PORT],
    ["--seed", "-1", PORT],
    ["tap0"],
    ["tap0,1,2,3"],
    ["tap0,1,2,3,4,5"],
    [",1,2,3,4"],
    ["sixteen-letters-,1,2,3,4"],
    ['a"b,1,2,3,4'],
    ["a b,1,2,3,4"],
    ["tap0,-1,2,3,4"],
    ["tap0,1.5,2,3,4"],
    ["tap0,+1,2,3,4"],
    ["tap0, 1,2,3,4"],
    ["tap0,,2,3,4"],
    ["tap0,1,2,3,1000001"],
    ["tap0,1,2,99999999999999999999,4"],
    [PORT, "tap1"],
]


def test_arguments_give_ports_and_seed():
    assert parse_arguments([PORT]) == ([SPEC], 0)
    assert parse_arguments(["--seed", "7", PORT, PORT]) == ([SPEC, SPEC], 7)


@pytest.mark.parametrize("argv", BAD_ARGUMENTS, ids=" ".join)
def test_bad_arguments_are_refused(argv):
    with pytest.raises(ConfigError):
        parse_arguments(argv)


@pytest.fixture
def switch() -> Switch:
    return Switch([SPEC, SPEC])


def test_each_fault_is_in_force_when_it_is_answered(switch):
    for command in ("cut 1", "delay 5", "drop 10", "duplicate 20"):
        answer = json.loads(obey(switch, f"fault 1 {command}"))
        assert answer == {"event": "fault", "port": 1, "kind": command.split()[0]}
    faults = switch.ports[1].faults
    assert (faults.cut, faults.extra_ns, faults.drop_ppm, faults.duplicate_ppm) == (True, 5, 10, 20)
    for command in ("cut 0", "delay 0", "drop -1", "duplicate 0"):
        obey(switch, f"fault 1 {command}")
    assert (faults.cut, faults.extra_ns, faults.drop_ppm, faults.duplicate_ppm) == (
        0,
        0,
        -1,
        0,
    )


BAD_COMMANDS = [
    "",
    "stat",
    "stats now",
    "fault",
    "fault 0 cut",
    "fault 0 cut 1 1",
    "fault 2 cut 1",
    "fault -1 cut 1",
    "fault x cut 1",
    "fault 0 cut 2",
    "fault 0 cut true",
    "fault 0 burn 1",
    "fault 0 delay -1",
    "fault 0 delay 1e3",
    "fault 0 drop -2",
    "fault 0 drop 1000001",
    "fault 0 duplicate 99999999999999999999",
    '"}\\',
    "\x00\x7f\xff",
]


@pytest.mark.parametrize("command", BAD_COMMANDS)
def test_a_bad_command_is_an_error_and_changes_nothing(switch, command):
    answer = json.loads(obey(switch, command))
    assert answer["event"] == "error"
    assert answer["message"]
    assert switch.ports[0].faults == Switch([SPEC]).ports[0].faults


def test_stats_have_their_fields(switch):
    stats = json.loads(obey(switch, "stats"))
    assert stats["event"] == "stats"
    assert stats["packets"] == 0
    assert stats["late_us"] == {"p50": 0, "p99": 0, "max": 0}
    names = ("bytes", "packets", "dropped", "lost", "queue_max")
    assert len(stats["ports"]) == 2
    for port in stats["ports"]:
        assert port == {f"{way}_{name}": 0 for way in ("up", "down") for name in names}


def test_lines_come_in_any_pieces():
    lines = CommandLines()
    assert lines.feed(b"sta") == []
    assert lines.feed(b"ts\nfault 0 ") == ["stats"]
    assert lines.feed(b"cut 1\n\n") == ["fault 0 cut 1", ""]


def test_a_line_without_end_takes_no_memory_and_the_next_is_heard():
    lines = CommandLines()
    for _ in range(100):
        assert lines.feed(b"x" * 4096) == []
    assert lines.feed(b"y\nstats\n") == [None, "stats"]
    assert json.loads(obey(Switch([SPEC]), None))["event"] == "error"
