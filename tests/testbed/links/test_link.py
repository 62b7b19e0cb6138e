"""The closed forms: against numbers done by hand, each other, and the switch's own model."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.links import link
from testbed.links.link import LinkSpec
from testbed.switch.model import ETHERNET_BYTES, PortSpec, Switch
from tests.testbed.closed_forms import gather_s, ping_pong_s

LAN = LinkSpec(delay_s=0.002, rate_bps=300e6)
links = st.builds(
    LinkSpec,
    delay_s=st.integers(0, 20_000).map(lambda us: us / 1e6),
    rate_bps=st.one_of(st.none(), st.integers(1_000_000, 2_000_000_000).map(float)),
    queue_bytes=st.just(1 << 40),
)
payloads = st.integers(1, 100_000)


def test_wire_bytes_32_kib_is_23_packets():
    assert link.num_packets(32768) == 23
    assert link.wire_bytes(32768) == 32768 + 23 * 52


@pytest.mark.parametrize(("payload", "expected"), [(0, 0), (1, 53), (1448, 1500), (1449, 1553)])
def test_wire_bytes_at_the_edges(payload, expected):
    assert link.wire_bytes(payload) == expected


def test_goodput_of_300_mbit_is_289_6():
    assert link.goodput_bps(300e6) == pytest.approx(289.6e6)


def test_ping_counts_four_delays_and_four_serialisations():
    assert link.ping_s(84, LAN, LAN) == pytest.approx(4 * 0.002 + 4 * 84 * 8 / 300e6)


def test_one_way_adds_one_packet_for_store_and_forward():
    assert link.one_way_s(32768, LAN, LAN) == pytest.approx(0.004 + (33964 + 1500) * 8 / 300e6)


def test_ping_pong_32_kib_at_2_ms_300_mbit():
    assert ping_pong_s(32768, LAN, LAN) == pytest.approx(9.8915e-3, rel=1e-4)


def test_gather_of_seven_is_seven_payloads_at_the_masters_port():
    expected_s = 0.004 + (1500 + 7 * 33964) * 8 / 300e6
    assert gather_s(32768, [LAN] * 7, LAN) == pytest.approx(expected_s)


def test_gather_of_slow_workers_waits_for_them():
    slow = LinkSpec(rate_bps=1e6)
    alone_s = link.one_way_s(32768, slow, LAN)
    assert gather_s(32768, [slow, slow], LAN) == pytest.approx(alone_s, rel=1e-3)


def test_no_limits_take_no_time():
    assert ping_pong_s(1 << 20, LinkSpec(), LinkSpec()) == 0
    assert gather_s(1 << 20, [LinkSpec()] * 3, LinkSpec()) == 0


@given(payloads, links, links)
def test_one_way_is_the_gather_from_one(payload, src, dst):
    assert link.one_way_s(payload, src, dst) == pytest.approx(
        gather_s(payload, [src], dst), rel=1e-9
    )


@given(payloads, st.lists(links, min_size=1, max_size=5), links)
def test_gather_is_between_its_bounds(payload, workers, master):
    took_s = gather_s(payload, workers, master) * (1 + 1e-9)
    assert took_s >= max(link.one_way_s(payload, w, master) for w in workers)
    assert took_s >= len(workers) * link.serialise_s(link.wire_bytes(payload), master)
    assert took_s <= sum(link.one_way_s(payload, w, master) for w in workers) * (1 + 1e-8) + 1e-12


@given(payloads, links, links, st.integers(1, 64))
def test_dilated_links_take_as_many_times_longer(payload, a, b, dilation):
    plain_s = ping_pong_s(payload, a, b)
    slow_s = ping_pong_s(payload, a.dilated(dilation), b.dilated(dilation))
    assert slow_s == pytest.approx(dilation * plain_s, rel=1e-9)


@given(st.integers(1, 30_000), st.lists(links, min_size=2, max_size=4))
def test_the_switch_takes_what_the_closed_form_says(payload, specs):
    """Device 0 gathers from all others through the model, at exact times."""
    model = Switch([port_of(i, spec) for i, spec in enumerate(specs)])
    to_master = bytes((2, 0, 0, 0, 0, 1)) + bytes(ETHERNET_BYTES - 6)
    for first in range(0, payload, link.MSS_BYTES):
        ip_bytes = min(link.MSS_BYTES, payload - first) + link.HEADER_BYTES
        for worker in range(1, len(specs)):
            model.receive(worker, to_master + bytes(ip_bytes), 0)
    now_ns, count = 0, 0
    while (due := model.due(now_ns)) is not None:
        now_ns = max(now_ns, due[0])
        model.deliver(due[1], now_ns, lambda _: True)
        count += 1
    assert count >= link.num_packets(payload) * (len(specs) - 1)
    expected_s = gather_s(payload, specs[1:], specs[0])
    rounding_ns = 2 * count + 2
    assert now_ns == pytest.approx(expected_s * 1e9, abs=rounding_ns)


def port_of(index: int, spec: LinkSpec) -> PortSpec:
    return PortSpec(
        f"t{index}",
        round(spec.delay_s * 1e9),
        0 if spec.rate_bps is None else round(spec.rate_bps),
        spec.queue_bytes,
        0,
    )


def test_link_spec_is_a_value():
    assert dataclasses.replace(LAN) == LAN
    assert LAN.dilated(2) == LinkSpec(0.004, 150e6)
