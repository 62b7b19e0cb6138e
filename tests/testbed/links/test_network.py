"""Networks by their one interface: refusals, then every kind that works here (marked docker)."""

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from testbed.base import DeviceError
from testbed.links.link import LinkSpec
from testbed.links.nettools import HeldNamespace, run_tool
from testbed.links.network import (
    BACKENDS,
    Network,
    _rights_problem,
    _tap_problem,
    capabilities,
    open_network,
)
from testbed.links.switch_network import SwitchNetwork
from tests.testbed.echo import echo_server, round_trips_s
from tpi.errors import ConfigError

_LABEL = f"{os.getpid():06x}"[-6:]
_DELAY_S = 0.002
_LINKS = [LinkSpec(_DELAY_S, 300e6)] * 2
_KINDS = [kind for kind in BACKENDS if kind not in ("auto", "switch", "none")]


def test_unknown_backend_is_refused():
    with pytest.raises(ConfigError, match=r"link\.backend: got 'wire', expected one of auto"):
        open_network(_LINKS, backend="wire", label=_LABEL)


def test_no_links_are_refused():
    with pytest.raises(DeviceError, match="none described"):
        open_network([], label=_LABEL)


def test_one_device_needs_no_network():
    network = open_network(_LINKS[:1], backend="none", label=_LABEL)
    assert network.backend == "none"
    assert network.attach(0, 1) == "127.0.0.1"
    network.verify()
    assert network.counters() == {"backend": "none"}
    with pytest.raises(DeviceError, match="no fault cut"):
        network.fault(0, "cut", 1)
    network.close()


def test_two_devices_need_one():
    with pytest.raises(DeviceError, match="2 devices need links"):
        open_network(_LINKS, backend="none", label=_LABEL)


@pytest.mark.parametrize(
    ("effective", "missing"),
    [
        ("000001ffffffffff", None),
        ("0000000000201000", None),
        ("0000000000200000", "CAP_NET_ADMIN"),
        ("0000000000001000", "CAP_SYS_ADMIN"),
        ("0000000000000000", "CAP_NET_ADMIN and CAP_SYS_ADMIN"),
    ],
)
def test_rights(tmp_path, effective, missing):
    status = tmp_path / "status"
    status.write_text(f"Name:\tpython\nCapEff:\t{effective}\n")
    expected = missing and f"emulated links need {missing}: run as root (sudo)"
    assert _rights_problem(status) == expected


def test_missing_tun_is_said_with_what_mends_it(tmp_path):
    assert "modprobe tun" in str(_tap_problem(tmp_path / "tun"))


@pytest.mark.docker
def test_without_rights_everything_is_refused_in_one_line():
    program = (
        "from testbed.links.network import *; import json\n"
        "from testbed.links.link import LinkSpec\n"
        "print(json.dumps(capabilities()))\n"
        "try: open_network([LinkSpec()], label='abcdef')\n"
        "except DeviceError as exc: print(exc)\n"
    )
    drop = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-all"]
    done = subprocess.run(
        [*drop, sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    able, refusal = done.stdout.splitlines()
    reason = "emulated links need CAP_NET_ADMIN: run as root (sudo)"
    assert json.loads(able) == dict.fromkeys(_KINDS, reason)
    assert refusal == f"links: {reason}"


@pytest.mark.docker
def test_some_kind_works_here_and_auto_takes_it():
    able = capabilities()
    assert list(able) == _KINDS
    assert able["switch-python"] is None
    network = open_network(_LINKS, label=_LABEL)
    network.close()
    first = next(kind for kind in _KINDS if able[kind] is None)
    assert network.backend == first


@pytest.fixture(params=_KINDS)
def kind(request) -> str:
    """Every kind of network that works on this host."""
    name = str(request.param)
    problem = capabilities()[name]
    if problem is not None:
        pytest.skip(problem)
    return name


@pytest.fixture
def rooms() -> Iterator[list[HeldNamespace]]:
    """The namespaces of two devices."""
    with ExitStack() as stack:
        yield [stack.enter_context(HeldNamespace()) for _ in _LINKS]


@pytest.fixture
def network(kind, rooms) -> Iterator[Network]:
    """Both attached."""
    network = open_network(_LINKS, backend=kind, label=_LABEL)
    try:
        for index, room in enumerate(rooms):
            assert network.attach(index, room.pid) == f"10.77.0.{index + 1}"
        yield network
    finally:
        network.close()


def _taps() -> list[str]:
    shown = json.loads(run_tool(["ip", "-j", "link", "show"]))
    return [link["ifname"] for link in shown if link["ifname"].startswith(f"tpi{_LABEL}")]


@pytest.mark.docker
def test_round_trip_takes_both_delays_twice(network, rooms):
    with echo_server(rooms[1], "10.77.0.2"):
        trips_s = round_trips_s(rooms[0], "10.77.0.2", 30)
    assert 4 * _DELAY_S <= min(trips_s) <= 1.2 * 4 * _DELAY_S
    network.verify()
    counters = network.counters()
    assert counters["backend"] == network.backend
    first, second = counters["ports"]
    assert first["up_packets"] >= 30
    assert second["down_packets"] >= 30
    assert first["up_dropped"] == second["down_dropped"] == 0
    assert counters["unexplained_retransmissions"] == 0
    assert [s["address"] for s in counters["settings"]] == ["10.77.0.1/16", "10.77.0.2/16"]


@pytest.mark.docker
def test_faults_are_in_force_and_undone(network, rooms):
    with echo_server(rooms[1], "10.77.0.2"):
        network.fault(1, "cut", 1)
        assert round_trips_s(rooms[0], "10.77.0.2", 2, timeout_s=0.05) == []
        network.fault(1, "cut", 0)
        assert len(round_trips_s(rooms[0], "10.77.0.2", 3)) == 3
        network.fault(0, "drop", 1.0)
        assert round_trips_s(rooms[0], "10.77.0.2", 2, timeout_s=0.05) == []
        network.fault(0, "drop", -1)
        network.fault(0, "delay", 0.02)
        slow_s = min(round_trips_s(rooms[0], "10.77.0.2", 3))
        assert 0.048 <= slow_s <= 0.06
        network.fault(0, "delay", 0)
        assert min(round_trips_s(rooms[0], "10.77.0.2", 10)) <= 1.2 * 4 * _DELAY_S


@pytest.mark.docker
def test_only_the_links_go_and_they_go_with_close(network, rooms):
    assert "eth1" in rooms[0].run(["ip", "-brief", "link"])
    network.close()
    network.close()
    assert "eth1" not in rooms[0].run(["ip", "-brief", "link"])
    assert _taps() == []
    with pytest.raises(DeviceError):
        network.verify()


@pytest.mark.docker
def test_device_that_is_gone_is_noticed_and_others_go_on(network, rooms):
    rooms[0].close()
    with pytest.raises(DeviceError, match="device 0 is gone"):
        network.verify()
    counters = network.counters()
    assert counters["tcp"][0] is None
    assert counters["tcp"][1]["RetransSegs"] == 0
    assert counters["unexplained_retransmissions"] is None


@pytest.mark.docker
@pytest.mark.parametrize("name", ["switch-c", "switch-python"])
def test_switch_whose_interface_exists_says_so(name):
    if (problem := capabilities()[name]) is not None:
        pytest.skip(problem)
    network = open_network(_LINKS, backend=name, label=_LABEL)
    try:
        assert len(_taps()) == 2
        with pytest.raises(DeviceError, match=f"tpi{_LABEL}0"):
            open_network(_LINKS, backend=name, label=_LABEL)
        assert len(_taps()) == 2
    finally:
        network.close()
    assert _taps() == []


_OWNER = f"""
import json, sys
from testbed.links.link import LinkSpec
from testbed.links.network import open_network
from testbed.links.nettools import HeldNamespace
network = open_network([LinkSpec(0.001)] * 2, backend=sys.argv[1], label="{_LABEL}")
rooms = [HeldNamespace() for _ in range(2)]
network.attach(0, rooms[0].pid)
switch = getattr(network, "_switch", None)
held = network._core.pid if switch is None else switch._popen.pid
print(json.dumps([held, *(room.pid for room in rooms)]), flush=True)
sys.stdin.read()
"""


@pytest.mark.docker
def test_nothing_is_left_when_the_owner_is_killed(kind):
    argv = [sys.executable, "-c", _OWNER, kind]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        pids = json.loads(owner.stdout.readline())
        descriptors = [os.pidfd_open(pid) for pid in pids]
        inodes = {Path(f"/proc/{pid}/ns/net").readlink() for pid in pids[1:]}
        owner.send_signal(signal.SIGKILL)
    for descriptor in descriptors:
        assert select.select([descriptor], [], [], 10.0)[0], "a process outlived its owner by 10 s"
        os.close(descriptor)
    assert _taps() == []
    assert inodes.isdisjoint(_namespaces())


def _namespaces() -> set[Path]:
    """Network namespaces that some process is in."""
    found = set()
    for link in Path("/proc").glob("[0-9]*/ns/net"):
        try:
            found.add(link.readlink())
        except OSError:
            continue
    return found


@pytest.mark.docker
def test_dead_switch_is_an_error_of_the_device(rooms):
    network = open_network(_LINKS, backend="switch", label=_LABEL)
    assert isinstance(network, SwitchNetwork)
    try:
        network.attach(0, rooms[0].pid)
        os.kill(network._switch._popen.pid, signal.SIGKILL)
        os.waitid(os.P_PID, network._switch._popen.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(DeviceError, match="switch: ended"):
            network.counters()
    finally:
        network.close()
    assert _taps() == []
