"""What a device's namespace gets: commands as text, then real namespaces (marked docker)."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from testbed.base import DeviceError
from testbed.links.endpoints import (
    MAX_DEVICES,
    Endpoint,
    address_of,
    expected,
    interface_batch,
    known_sysctls,
    mac_of,
    move_command,
    seen_interface,
    seen_neighbours,
    seen_route,
    seen_sysctls,
    settle,
    sysctl_command,
    verify,
    wanted_sysctls,
)
from testbed.links.nettools import HeldNamespace, entered


@pytest.mark.parametrize(
    ("index", "address", "mac"),
    [
        (0, "10.77.0.1", "02:00:00:00:00:01"),
        (199, "10.77.0.200", "02:00:00:00:00:c8"),
        (200, "10.77.1.1", "02:00:00:00:00:c9"),
        (255, "10.77.1.56", "02:00:00:00:01:00"),
        (MAX_DEVICES - 1, "10.77.255.200", "02:00:00:00:c8:00"),
    ],
)
def test_addresses(index, address, mac):
    assert address_of(index) == address
    assert mac_of(index) == mac


@pytest.mark.parametrize(
    ("index", "num_devices", "dilation"),
    [
        (-1, 1, 1.0),
        (1, 1, 1.0),
        (0, MAX_DEVICES + 1, 1.0),
        (0, 1, 0.5),
        (0, 1, 600.0),
        (0, 1, float("nan")),
    ],
)
def test_endpoint_out_of_range_is_refused(index, num_devices, dilation):
    with pytest.raises(DeviceError, match="links: d"):
        Endpoint(index, num_devices, dilation)


def test_interface_batch():
    assert interface_batch(Endpoint(1, 3)) == (
        "link set dev lo up\n"
        "link set dev eth1 address 02:00:00:00:00:02 mtu 1500\n"
        "link set dev eth1 txqueuelen 10000 gso_max_segs 1\n"
        "address add 10.77.0.2/16 dev eth1 noprefixroute\n"
        "link set dev eth1 up\n"
        "route add 10.77.0.0/16 dev eth1 scope link src 10.77.0.2"
        " quickack 1 initcwnd 10 rto_min 200ms\n"
        "neighbour add 10.77.0.1 lladdr 02:00:00:00:00:01 dev eth1 nud permanent\n"
        "neighbour add 10.77.0.3 lladdr 02:00:00:00:00:03 dev eth1 nud permanent\n"
    )


def test_dilation_stretches_the_retransmission_timer():
    end = Endpoint(0, 2, dilation=38.2)
    assert end.rto_min_ms == 7640
    assert "rto_min 7640ms" in interface_batch(end)
    assert wanted_sysctls(end)["net.ipv4.tcp_rto_min_us"] == "7640000"


def test_known_sysctls_are_those_of_this_kernel(tmp_path):
    (tmp_path / "net" / "ipv4").mkdir(parents=True)
    (tmp_path / "net" / "ipv4" / "tcp_sack").touch()
    known = known_sysctls(wanted_sysctls(Endpoint(0, 2)), tmp_path)
    assert known == {"net.ipv4.tcp_sack": "1"}


def test_commands():
    assert sysctl_command({"a.b": "1", "c": "x"}) == ["sysctl", "-q", "-w", "a.b=1", "c=x"]
    move = ["ip", "link", "set", "dev", "tpi0", "netns", "/proc/9/fd/3", "name", "eth1"]
    assert move_command("tpi0", "/proc/9/fd/3") == move
    assert move_command("tpi0", "/proc/9/fd/3", "/proc/9/fd/4") == [
        *("nsenter", "--net=/proc/9/fd/4", "--"),
        *move,
    ]


_ADDRESS = {
    "ifname": "eth1",
    "flags": ["BROADCAST", "MULTICAST", "UP", "LOWER_UP"],
    "mtu": 1500,
    "txqlen": 10000,
    "address": "02:00:00:00:00:01",
    "gso_max_segs": 1,
    "addr_info": [{"family": "inet", "local": "10.77.0.1", "prefixlen": 16}],
}
_ROUTE = {
    "dst": "10.77.0.0/16",
    "metrics": [{"initcwnd": 10, "rto_min": 200, "quickack": 1}],
}
_NEIGHBOUR = {"dst": "10.77.0.2", "lladdr": "02:00:00:00:00:02", "state": ["PERMANENT"]}


def test_what_the_tools_say_is_what_is_expected():
    end = Endpoint(0, 2)
    seen = {
        **seen_interface(json.dumps([{}, _ADDRESS])),
        **seen_route(json.dumps([{"dst": "10.0.0.0/8"}, _ROUTE])),
        **seen_neighbours(json.dumps([_NEIGHBOUR]), end),
        **seen_sysctls("reno\n0\n", ["one", "other"]),
    }
    assert seen == expected(end, {"one": "reno", "other": "0"})


@pytest.mark.parametrize(
    "changed",
    [{"state": ["REACHABLE"]}, {"lladdr": "02:00:00:00:00:09"}, {"dst": "10.77.0.3"}],
)
def test_a_wrong_neighbour_does_not_count(changed):
    assert seen_neighbours(json.dumps([_NEIGHBOUR | changed]), Endpoint(0, 2)) == {
        "neighbours": "0"
    }


def test_a_route_without_metrics_is_seen():
    nothing = {"quickack": "None", "initcwnd": "None", "rto_min_ms": "None"}
    assert seen_route(json.dumps([{"dst": "10.77.0.0/16"}])) == nothing
    assert seen_route("[]") == nothing


def test_an_interface_that_is_down_is_seen():
    down = _ADDRESS | {"flags": ["UP"], "addr_info": []}
    seen = seen_interface(json.dumps([down]))
    assert seen["is_up"] == "False"
    assert seen["address"] == ""


@pytest.fixture
def room():
    """A namespace with a veth pair whose one end is still called `host`, up on the other."""
    with HeldNamespace() as held:
        held.run(["ip", "link", "add", "name", "host", "type", "veth", "peer", "name", "far"])
        held.run(["ip", "link", "set", "dev", "far", "up"])
        yield held


def _settle(room: HeldNamespace, end: Endpoint) -> dict[str, str]:
    path = f"/proc/{room.pid}/ns/net"
    return settle("host", room.pid, end, source=path)


@pytest.mark.docker
def test_settle_puts_everything_in_force_and_nothing_outside(room):
    before = Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text()
    end = Endpoint(2, 64, dilation=38.0)
    settings = _settle(room, end)
    assert settings["address"] == "10.77.0.3/16"
    assert settings["neighbours"] == "63"
    assert settings["rto_min_ms"] == "7600"
    assert settings["net.ipv4.tcp_congestion_control"] == "reno"
    assert settings == expected(end, known_sysctls(wanted_sysctls(end)))
    inside = room.run(["cat", "/proc/sys/net/ipv4/tcp_congestion_control"])
    assert inside == "reno\n"
    assert Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text() == before
    assert "inet6" not in room.run(["ip", "address", "show", "dev", "eth1"])


@pytest.mark.docker
@pytest.mark.parametrize(
    ("tamper", "complaint"),
    [
        ("sysctl -q -w net.ipv4.tcp_slow_start_after_idle=1", "tcp_slow_start_after_idle '1'"),
        ("ip link set dev eth1 gso_max_segs 64", "gso_max_segs '64', expected '1'"),
        ("ip neighbour del 10.77.0.2 dev eth1", "neighbours '0'"),
        ("ip route change 10.77.0.0/16 dev eth1 scope link initcwnd 20", "initcwnd '20'"),
        ("ip link set dev far down", "is_up 'False'"),
    ],
)
def test_verify_sees_what_was_changed_since(room, tamper, complaint):
    end = Endpoint(0, 2)
    _settle(room, end)
    room.run(tamper.split())
    with pytest.raises(DeviceError, match="device 0: not in force") as raised:
        verify(room.pid, end)
    assert complaint in str(raised.value)


@pytest.mark.docker
def test_settle_twice_says_what_failed(room):
    _settle(room, Endpoint(0, 2))
    with pytest.raises(DeviceError, match='Cannot find device "host"'):
        _settle(room, Endpoint(0, 2))


@pytest.mark.docker
def test_settle_serves_a_process_without_any_right(room):
    drop = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all"]
    argv = entered(f"/proc/{room.pid}/ns/net", [*drop, "--inh-caps=-all", "cat"])
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as nobody:
        assert nobody.stdin is not None
        assert nobody.stdout is not None
        nobody.stdin.write(b"there\n")
        nobody.stdin.flush()
        assert nobody.stdout.readline() == b"there\n"
        path = f"/proc/{room.pid}/ns/net"
        assert settle("host", nobody.pid, Endpoint(0, 2), source=path)["is_up"] == "True"
        nobody.stdin.close()


@pytest.mark.docker
def test_settle_never_touches_our_own_namespace():
    with pytest.raises(DeviceError, match="no network namespace of its own"):
        settle("tpi0", os.getpid(), Endpoint(0, 2))
