"""What every emulation of links must do, whatever makes them; needs root.

Receivers and senders are programs in namespaces (`link_programs.py`); a datagram carries the time
when it was sent. Bands hold on a busy two-core machine: medians and totals, not tails.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from testbed.links.link import LinkSpec, serialise_s
from tests.testbed.namespaces import (
    Links,
    Namespace,
    SwitchLinks,
    end,
    know_each_other,
    mac_of,
)

pytestmark = [pytest.mark.docker, pytest.mark.timeout(60)]

PROGRAM = [sys.executable, "-I", str(Path(__file__).with_name("link_programs.py"))]
PORT = 9000
PACKET_BYTES = 1500
LAN = LinkSpec(delay_s=0.002, rate_bps=300e6)
SLOW = LinkSpec(delay_s=0.001, rate_bps=20e6)
FREE = LinkSpec(delay_s=0.001)

MakeLinks = Callable[[Sequence[LinkSpec]], Links]


@dataclass(frozen=True, slots=True)
class Datagram:
    number: int
    sender: str
    sent_s: float
    received_s: float

    @property
    def delay_s(self) -> float:
        return self.received_s - self.sent_s


class Sink:
    """A program that takes datagrams until `count` have come, or none comes for a second."""

    def __init__(self, node: Namespace, count: int) -> None:
        self._program = node.popen([*PROGRAM, "sink", str(PORT), str(count), "1.0"])
        assert self._line() == "listening"

    def _line(self) -> Any:
        assert self._program.stdout is not None
        return json.loads(self._program.stdout.readline())

    def take(self) -> list[Datagram]:
        """What came, in order, once it has ended."""
        rows = self._line()
        end(self._program)
        return [Datagram(n, who, sent / 1e9, got / 1e9) for n, who, sent, got in rows]


@pytest.fixture(params=["c", "python"])
def make_links(request) -> Iterator[MakeLinks]:
    """Makes attached namespaces, one per link; they go when the test ends."""
    made: list[Links] = []

    def make(links: Sequence[LinkSpec]) -> Links:
        made.append(SwitchLinks(links, request.param))
        know_each_other(made[-1].nodes)
        return made[-1]

    yield make
    for links in made:
        links.close()


def send(
    sources: Sequence[Namespace],
    dst: Namespace,
    count: int,
    ip_bytes: int = PACKET_BYTES,
    gap_s: float = 0.0,
) -> None:
    """All sources send at once; returns when all have."""
    blast = [*PROGRAM, "blast", dst.address, str(PORT), str(count), str(ip_bytes), str(gap_s)]
    senders = [source.popen(blast) for source in sources]
    for sender in senders:
        assert sender.stdout is not None
        assert json.loads(sender.stdout.readline()) == "ready"
    for sender in senders:
        assert sender.stdin is not None
        sender.stdin.write("go\n")
    for sender in senders:
        sender.communicate(timeout=20)
        assert sender.returncode == 0


def transfer(
    sources: Sequence[Namespace],
    dst: Namespace,
    count: int,
    ip_bytes: int = PACKET_BYTES,
    gap_s: float = 0.0,
) -> list[Datagram]:
    """What arrives of `count` datagrams from each source."""
    sink = Sink(dst, count * len(sources))
    send(sources, dst, count, ip_bytes, gap_s)
    return sink.take()


def median_delay_s(datagrams: Sequence[Datagram]) -> float:
    return statistics.median(d.delay_s for d in datagrams)


def pace_s(datagrams: Sequence[Datagram]) -> float:
    """Time from one to the next: the median over half the burst, which a few late ones leave."""
    half = len(datagrams) // 2
    times = [d.received_s for d in datagrams]
    return statistics.median((times[k + half] - times[k]) / half for k in range(half))


def test_delay_is_that_of_both_links(make_links):
    a, b = LinkSpec(delay_s=0.003, rate_bps=50e6), LinkSpec(delay_s=0.005, rate_bps=100e6)
    nodes = make_links([a, b]).nodes
    for src, dst in ((0, 1), (1, 0)):
        got = transfer([nodes[src]], nodes[dst], count=100, gap_s=0.005)
        nominal_s = 0.008 + serialise_s(PACKET_BYTES, a) + serialise_s(PACKET_BYTES, b)
        assert min(d.delay_s for d in got) >= nominal_s * 0.99
        assert median_delay_s(got) == pytest.approx(nominal_s, rel=0.08)


@pytest.mark.parametrize("slow", [0, 1], ids=["up-link", "down-link"])
def test_rate_is_that_of_the_slower_link(make_links, slow):
    nodes = make_links([SLOW if i == slow else LAN for i in range(2)]).nodes
    got = transfer([nodes[0]], nodes[1], count=400)
    assert len(got) == 400
    assert pace_s(got) == pytest.approx(serialise_s(PACKET_BYTES, SLOW), rel=0.03)


def test_order_is_kept(make_links):
    nodes = make_links([replace(LAN, rate_bps=100e6), LAN]).nodes
    got = transfer([nodes[0]], nodes[1], count=500)
    assert [d.number for d in got] == list(range(500))


def test_order_is_kept_when_the_delay_falls(make_links):
    links = make_links([LAN, LAN])
    a, b = links.nodes
    sink = Sink(b, 40)
    links.fault(0, "delay", 0.3)
    send([a], b, 20, ip_bytes=200)
    links.fault(0, "delay", 0)
    send([a], b, 20, ip_bytes=200)
    assert [d.number for d in sink.take()] == [*range(20), *range(20)]


def test_star_shares_the_down_link_of_its_centre(make_links):
    nodes = make_links([SLOW] * 4).nodes
    alone = transfer([nodes[1]], nodes[0], count=100)
    together = transfer(nodes[1:], nodes[0], count=100)
    packet_s = serialise_s(PACKET_BYTES, SLOW)
    assert len(together) == 300
    assert pace_s(alone) == pytest.approx(packet_s, rel=0.04)
    assert pace_s(together) == pytest.approx(packet_s, rel=0.04)
    # They share it: each has its part in the first half already.
    first_half = [d.sender for d in together[:150]]
    assert all(first_half.count(node.address) > 20 for node in nodes[1:])


def test_directions_do_not_share_a_link(make_links):
    """A device that receives at full rate still sends at full rate."""
    nodes = make_links([SLOW] * 3).nodes
    sink = Sink(nodes[2], 300)
    send([nodes[0]], nodes[2], 300)  # takes 180 ms, and the sender is done long before
    inward = transfer([nodes[1]], nodes[0], count=200)
    packet_s = serialise_s(PACKET_BYTES, SLOW)
    assert pace_s(inward) == pytest.approx(packet_s, rel=0.04)
    assert pace_s(sink.take()) == pytest.approx(packet_s, rel=0.04)


def test_addresses_are_asked_for_and_answered(make_links):
    """Broadcasts reach every other device, answers only who asked."""
    nodes = make_links([LAN] * 3).nodes
    for node in nodes:
        node.run(["ip", "neigh", "flush", "nud", "permanent", "dev", "eth1"])
    assert len(transfer([nodes[0]], nodes[2], count=3)) == 3
    known = json.loads(nodes[0].run(["ip", "-json", "neigh", "show", "dev", "eth1"]))
    assert {row["dst"]: row["lladdr"] for row in known} == {nodes[2].address: mac_of(2)}


@pytest.mark.parametrize("where", ["up", "down"])
def test_a_full_queue_drops_and_counts(make_links, where):
    tight = LinkSpec(delay_s=0.001, rate_bps=2e6, queue_bytes=64 << 10)
    src, dst = (tight, FREE) if where == "up" else (FREE, tight)
    links = make_links([src, dst])
    before = links.counters()["ports"]
    got = transfer([links.nodes[0]], links.nodes[1], count=200)
    after = links.counters()["ports"]
    index = 0 if where == "up" else 1
    dropped = after[index][f"{where}_dropped"] - before[index][f"{where}_dropped"]
    room = tight.queue_bytes // PACKET_BYTES
    # While the burst is sent, some leave the queue.
    assert room <= len(got) <= room + 15
    assert dropped == 200 - len(got)
    assert [d.number for d in got[:room]] == list(range(room))
    assert tight.queue_bytes - PACKET_BYTES <= after[index][f"{where}_queue_max"]
    assert after[index][f"{where}_queue_max"] <= tight.queue_bytes


def test_counters_count_ip_bytes_at_both_ends(make_links):
    links = make_links([LAN, LAN])
    before = links.counters()["ports"]
    transfer([links.nodes[0]], links.nodes[1], count=50, ip_bytes=1000)
    after = links.counters()["ports"]
    assert after[0]["up_packets"] - before[0]["up_packets"] == 50
    assert after[0]["up_bytes"] - before[0]["up_bytes"] == 50_000
    assert after[1]["down_packets"] - before[1]["down_packets"] == 50
    assert after[1]["down_bytes"] - before[1]["down_bytes"] == 50_000
    assert after[0]["up_dropped"] == after[1]["down_dropped"] == 0


def test_loss_strikes_on_both_links(make_links):
    nodes = make_links([replace(FREE, loss_frac=0.1)] * 2).nodes
    got = transfer([nodes[0]], nodes[1], count=2000, ip_bytes=100, gap_s=1e-5)
    lost_frac = 1 - len(got) / 2000
    assert lost_frac == pytest.approx(0.19, abs=0.045)  # five standard deviations


@pytest.mark.parametrize("cut", [0, 1], ids=["sender", "receiver"])
def test_cut_stops_everything_until_it_is_mended(make_links, cut):
    links = make_links([FREE, FREE])
    a, b = links.nodes
    sink = Sink(b, 11)
    links.fault(cut, "cut", 1)
    send([a], b, 10)
    links.fault(cut, "cut", 0)
    mended_s = time.monotonic()
    send([a], b, 1)
    got = sink.take()
    assert len(got) == 1
    assert got[0].sent_s > mended_s


def test_delay_fault_adds_one_way(make_links):
    links = make_links([FREE, FREE])
    a, b = links.nodes
    links.fault(1, "delay", 0.02)
    assert median_delay_s(transfer([a], b, count=20, gap_s=0.002)) == pytest.approx(0.022, rel=0.06)
    assert median_delay_s(transfer([b], a, count=20, gap_s=0.002)) == pytest.approx(0.022, rel=0.06)
    links.fault(1, "delay", 0)
    assert median_delay_s(transfer([a], b, count=20, gap_s=0.002)) < 0.005


def test_drop_fault_replaces_the_loss_and_goes(make_links):
    links = make_links([FREE, FREE])
    a, b = links.nodes
    links.fault(0, "drop", 0.5)
    got = transfer([a], b, count=1000, ip_bytes=100, gap_s=1e-5)
    assert len(got) / 1000 == pytest.approx(0.5, abs=0.08)
    links.fault(0, "drop", -1)
    assert len(transfer([a], b, count=200)) == 200


@pytest.mark.parametrize("where", [0, 1], ids=["sender", "receiver"])
def test_duplicate_fault_delivers_twice(make_links, where):
    links = make_links([FREE, FREE])
    a, b = links.nodes
    links.fault(where, "duplicate", 1)
    sink = Sink(b, 100)
    send([a], b, 50)
    assert sorted(d.number for d in sink.take()) == sorted([*range(50), *range(50)])
    links.fault(where, "duplicate", 0)
    assert len(transfer([a], b, count=10)) == 10
