"""Fidelity of the emulated links: what goes through them beside the closed forms; needs root.

Eight namespaces at 2 ms one way and 300 Mbit/s each, and the same dilated eight times. The numbers
have the endpoints' own work in them, so another load on the machine shows; each is the median of
several tries, and the table says what the load was.
"""

import json
import os
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from testbed.links import link
from testbed.links.link import LinkSpec
from tests.testbed.closed_forms import gather_s, ping_pong_s
from tests.testbed.namespaces import Namespace, SwitchLinks, end, know_each_other

pytestmark = [
    pytest.mark.bench,
    pytest.mark.docker,
    pytest.mark.timeout(600),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]

PROGRAM = [sys.executable, "-I", str(Path(__file__).with_name("link_endpoints.py"))]
PORT = "9100"
LAN = LinkSpec(delay_s=0.002, rate_bps=300e6)
NUM_NODES = 8
PAYLOAD_BYTES = 32 << 10
PING_BYTES = 84
# The link holds 300 kB; this counts the kernel's own cost of each packet.
WINDOW_BYTES = 600_000
# Fewer where each takes eight times as long and is less disturbed.
TRIES = {1: 5, 8: 3}


@dataclass(frozen=True, slots=True)
class Row:
    """One number: `band` is the share by which it may be off."""

    name: str
    unit: str
    expected: float
    measured: float
    band: float

    @property
    def error(self) -> float:
        return self.measured / self.expected - 1


def ask(node: Namespace, *argv: object) -> list[float]:
    answer = json.loads(node.run([*PROGRAM, *map(str, argv)], timeout_s=120))
    assert isinstance(answer, list)
    return answer


@contextmanager
def servers(nodes: Sequence[Namespace]) -> Iterator[None]:
    with ExitStack() as stack:
        for node in nodes:
            server = node.popen([*PROGRAM, "serve", PORT])
            stack.callback(end, server)
            assert server.stdout is not None
            assert json.loads(server.stdout.readline()) == "listening"
        yield


def one_try(nodes: Sequence[Namespace]) -> list[float]:
    """Seconds: ping p50 and p99, ping-pong, gather."""
    master, *workers = nodes
    far = workers[0].address
    pings = ask(master, "ping", far, 150)
    ping_pongs = ask(master, "ping-pong", far, PORT, PAYLOAD_BYTES, 50)
    gathers = ask(master, "gather", PORT, PAYLOAD_BYTES, 50, *[w.address for w in workers])
    p99_s = statistics.quantiles(pings, n=100)[98]
    return [
        statistics.median(pings),
        p99_s,
        statistics.median(ping_pongs),
        statistics.median(gathers),
    ]


def times(nodes: Sequence[Namespace], spec: LinkSpec, dilation: int) -> list[Row]:
    """Times undilated, each the median of several tries."""
    ping_s = link.ping_s(PING_BYTES, spec, spec)
    wanted_s = link.one_way_s(1, spec, spec) + gather_s(PAYLOAD_BYTES, [spec] * 7, spec)
    plan = [
        ("ping p50", ping_s, 0.05),
        ("ping p99", ping_s, 0.15),
        ("ping-pong", ping_pong_s(PAYLOAD_BYTES, spec, spec), 0.06),
        ("gather", wanted_s, 0.06),
    ]
    tries = zip(*(one_try(nodes) for _ in range(TRIES[dilation])), strict=True)
    to_ms = 1e3 / dilation
    return [
        Row(name, "ms", expected_s * to_ms, statistics.median(measured_s) * to_ms, band)
        for (name, expected_s, band), measured_s in zip(plan, tries, strict=True)
    ]


def goodput(nodes: Sequence[Namespace], spec: LinkSpec, dilation: int) -> Row:
    """Of a transfer with a window between the link's content and its queue, undilated."""
    to_mbit = dilation / 1e6
    seconds = 1.0 + 0.25 * dilation
    measured_bps = ask(nodes[0], "bulk", nodes[1].address, PORT, WINDOW_BYTES, seconds)[0]
    expected_bps = link.goodput_bps(spec.rate_bps or 0)
    return Row("goodput", "Mbit/s", expected_bps * to_mbit, measured_bps * to_mbit, 0.03)


def show(title: str, rows: Sequence[Row], share: float) -> None:
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    lines = [
        f"  {row.name:10}{row.measured:9.3f} {row.unit:7}expected{row.expected:9.3f}"
        f"{row.error:+8.2%} (band {row.band * share:.1%})"
        for row in rows
    ]
    sys.stdout.write("\n".join([f"\n{title}, load {load}", *lines, ""]))


@pytest.mark.parametrize("backend", ["c", "python"])
@pytest.mark.parametrize("dilation", [1, 8])
def test_links_are_as_fast_as_the_closed_forms_say(backend, dilation):
    spec = LAN.dilated(dilation)
    with SwitchLinks([spec] * NUM_NODES, backend) as links:
        know_each_other(links.nodes)
        with servers(links.nodes[1:]):
            rows = times(links.nodes, spec, dilation)
            late_us = links.counters()["late_us"]
            rows.append(goodput(links.nodes, spec, dilation))
        stats = links.counters()
    share = 0.5 if dilation > 1 else 1.0
    show(f"switch {backend}, dilation {dilation}, late {late_us} us", rows, share)
    assert sum(port["up_dropped"] + port["down_dropped"] for port in stats["ports"]) == 0
    outside = [row.name for row in rows if abs(row.error) > row.band * share]
    assert not outside
