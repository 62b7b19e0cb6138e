"""TCP's counters of a namespace, from a fake /proc."""

import pytest

from testbed.base import DeviceError
from testbed.links.tcp_counters import tcp_counters, unexplained_retransmissions

_SNMP = """\
Ip: Forwarding DefaultTTL
Ip: 1 64
Tcp: RtoAlgorithm MaxConn InSegs OutSegs RetransSegs InErrs
Tcp: 1 -1 100 90 3 0
"""
_NETSTAT = """\
TcpExt: SyncookiesSent TCPTimeouts TCPLossProbes
TcpExt: 0 2 1
IpExt: InNoRoutes
IpExt: 0
"""
_DEV = """\
Inter-|   Receive                            |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes packets errs drop fifo
    lo:       0       0    0    7    0     0          0         0        0       0    0    7 0 0 0 0
  eth1:  151944     100    0    5    0     0          0         0   136749      90    0    6 0 0 0 0
"""


@pytest.fixture
def proc(tmp_path):
    net = tmp_path / "41" / "net"
    net.mkdir(parents=True)
    for name, text in (("snmp", _SNMP), ("netstat", _NETSTAT), ("dev", _DEV)):
        (net / name).write_text(text)
    return tmp_path


def test_tcp_counters_of_both_files_and_the_interface(proc):
    assert tcp_counters(41, proc) == {
        "InSegs": 100,
        "OutSegs": 90,
        "RetransSegs": 3,
        "InErrs": 0,
        "TCPTimeouts": 2,
        "TCPLossProbes": 1,
        "rx_dropped": 5,
        "tx_dropped": 6,
    }


def test_tcp_counters_without_a_link_have_no_drops(proc):
    (proc / "41" / "net" / "dev").write_text(_DEV.replace("eth1", "eth0"))
    assert "tx_dropped" not in tcp_counters(41, proc)


def test_tcp_counters_of_a_process_that_is_gone(proc):
    with pytest.raises(DeviceError, match="process 42"):
        tcp_counters(42, proc)


@pytest.mark.parametrize(
    ("ports", "tcp", "expected"),
    [
        ([], [], 0),
        ([{"up_dropped": 0}], [{"RetransSegs": 0}], 0),
        ([{"up_dropped": 3, "down_dropped": 1, "up_lost": 1}], [{"RetransSegs": 5}], 0),
        ([{"up_dropped": 3}], [{"RetransSegs": 4}, {"RetransSegs": 1}], 2),
        ([{"up_dropped": 9}], [{"RetransSegs": 4}], 0),
        ([], [{"RetransSegs": 4, "TCPSynRetrans": 3, "TCPLossProbes": 1}], 0),
        ([], [{"RetransSegs": 4}, None], None),
    ],
)
def test_unexplained_retransmissions(ports, tcp, expected):
    assert unexplained_retransmissions(ports, tcp) == expected
