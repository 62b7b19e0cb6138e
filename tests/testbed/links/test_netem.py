"""Links through netem: commands as text; real ones where the kernel has it (marked docker)."""

import contextlib
import json

import pytest

from testbed.links.endpoints import AttachedDevices, known_sysctls, sysctl_command
from testbed.links.link import LinkSpec
from testbed.links.linkfault import AS_SPECIFIED
from testbed.links.netem import (
    CORE_SYSCTLS,
    LinkFaults,
    NetemNetwork,
    core_batch,
    device_end,
    fdb_batch,
    is_shaped,
    netem_arguments,
    netem_problem,
    port_counters,
    queue_packets,
    redirect_batch,
    shape_batch,
)
from testbed.links.nettools import HeldNamespace
from tests.testbed.echo import ECHO_IP_BYTES, echo_server, round_trips_s
from tpi.errors import ConfigError

_LINK = LinkSpec(0.002, 300e6, queue_bytes=150_000)


def test_core_batch():
    assert core_batch(1) == (
        "link add name bridge type bridge stp_state 0 forward_delay 0 mcast_snooping 0\n"
        "link add name core0 type veth peer name device0\n"
        "link add name up0 type ifb\n"
        "link set dev core0 gso_max_segs 1 master bridge up\n"
        "link set dev up0 gso_max_segs 1 up\n"
        "link set dev bridge up\n"
    )


def test_fdb_batch():
    assert fdb_batch(2) == (
        "link set dev core0 learning off flood off\n"
        "fdb add 02:00:00:00:00:01 dev core0 master static\n"
        "link set dev core1 learning off flood off\n"
        "fdb add 02:00:00:00:00:02 dev core1 master static\n"
    )


def test_redirect_batch():
    assert redirect_batch(1) == (
        "qdisc add dev core0 handle ffff: ingress\n"
        "filter add dev core0 parent ffff: protocol all u32 match u32 0 0"
        " action mirred egress redirect dev up0\n"
    )


def test_shape_batch_shapes_both_directions_in_the_middle():
    arguments = "limit 151 delay 2000.000us rate 300000000bit -14"
    assert shape_batch({4: _LINK}, {}) == (
        f"qdisc add dev up4 root handle 1: netem {arguments}\n"
        f"qdisc add dev core4 root handle 1: netem {arguments}\n"
    )


@pytest.mark.parametrize(
    ("link", "extra_delay_s", "packets"),
    [
        (_LINK, 0.0, 50 + 100 + 1),
        (_LINK, 0.002, 100 + 100 + 1),
        (LinkSpec(0.0, 1e6, queue_bytes=1), 0.0, 2),
        (LinkSpec(0.001, None, queue_bytes=3000), 0.0, 100_002),
    ],
)
def test_queue_holds_what_is_under_way_and_what_waits(link, extra_delay_s, packets):
    assert queue_packets(link, extra_delay_s) == packets


@pytest.mark.parametrize(
    ("kind", "value", "words"),
    [
        ("cut", 1, "delay 1000.000us loss random 100.000000%"),
        ("cut", 0, "delay 1000.000us loss random 2.000000%"),
        ("delay", 0.5, "delay 501000.000us loss random 2.000000%"),
        ("drop", 0.1, "delay 1000.000us loss random 10.000000%"),
        ("drop", 0.0, "delay 1000.000us"),
        ("drop", AS_SPECIFIED, "delay 1000.000us loss random 2.000000%"),
        ("duplicate", 0.25, "delay 1000.000us loss random 2.000000% duplicate 25.000000%"),
    ],
)
def test_faults(kind, value, words):
    faults = LinkFaults().with_fault(kind, value)
    link = LinkSpec(0.001, None, loss_frac=0.02)
    assert netem_arguments(link, faults) == f"limit {queue_packets(link)} {words}"


def test_faults_stay_until_each_is_undone():
    faults = LinkFaults().with_fault("delay", 0.1).with_fault("cut", 1).with_fault("drop", 0.5)
    assert faults == LinkFaults(True, 0.1, 0.5)
    assert faults.with_fault("cut", 0).with_fault("drop", -1) == LinkFaults(False, 0.1, None)


def test_unknown_fault_is_refused():
    with pytest.raises(ConfigError, match="reorder"):
        LinkFaults().with_fault("reorder", 1)


def _qdisc(dev: str, **fields: object) -> dict[str, object]:
    return {"kind": "netem", "dev": dev, **fields}


def test_is_shaped_wants_both_directions_of_every_link():
    all_of_them = [_qdisc(dev) for dev in ("up0", "core0", "up1", "core1")]
    assert is_shaped(json.dumps([{"kind": "noqueue", "dev": "lo"}, *all_of_them]), 2)
    assert not is_shaped(json.dumps(all_of_them[1:]), 2)


def test_port_counters_are_of_ip_bytes():
    qdiscs = [
        {"kind": "ingress", "dev": "core0", "bytes": 1, "packets": 1, "drops": 9},
        _qdisc("up0", bytes=1514 * 3, packets=3, drops=1),
        _qdisc("core0", bytes=66, packets=1, drops=0),
    ]
    assert port_counters(json.dumps(qdiscs), 1) == [
        {
            "up_bytes": 4500,
            "up_packets": 3,
            "up_dropped": 1,
            "down_bytes": 52,
            "down_packets": 1,
            "down_dropped": 0,
        }
    ]


@pytest.mark.docker
def test_packets_take_the_senders_up_link_and_the_receivers_down_link():
    """All that can be tried on any kernel: a plain queue stands where netem would."""
    links = [_LINK] * 3
    devices = AttachedDevices(links, 1.0)
    with contextlib.ExitStack() as stack:
        core, *rooms = (stack.enter_context(HeldNamespace()) for _ in range(4))
        core.run(sysctl_command(known_sysctls(CORE_SYSCTLS)))
        core.run(["ip", "-batch", "-"], core_batch(3))
        core.run(["bridge", "-batch", "-"], fdb_batch(3))
        ends = [f"{name}{i}" for i in range(3) for name in ("up", "core")]
        fifos = "".join(f"qdisc add dev {end} root pfifo limit 10\n" for end in ends)
        core.run(["tc", "-batch", "-"], redirect_batch(3) + fifos)
        for index, room in enumerate(rooms):
            source = f"/proc/{core.pid}/ns/net"
            devices.attach(device_end(index), index, room.pid, source)
        with echo_server(rooms[1], "10.77.0.2"):
            assert len(round_trips_s(rooms[0], "10.77.0.2", 5)) == 5
        shown = core.run(["tc", "-s", "-j", "qdisc", "show"]).replace("pfifo", "netem")
    first, second, third = port_counters(shown, 3)
    assert first["up_packets"] == first["down_packets"] == 5
    assert first["up_bytes"] == 5 * ECHO_IP_BYTES
    assert second["up_packets"] == second["down_packets"] == 5
    assert third["up_packets"] == third["down_packets"] == 0


@pytest.mark.docker
def test_netem_works_or_says_what_is_missing():
    problem = netem_problem()
    if problem is None:
        network = NetemNetwork([_LINK, _LINK], dilation=1.0)
        network.fault(0, "cut", 1)
        network.verify()
        assert network.counters()["backend"] == "netem"
        network.close()
    else:
        assert problem.startswith("netem: ")
        assert "link.backend=switch" in problem
