import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.links.link import LinkSpec, one_way_s, serialise_s, wire_bytes
from testbed.sim.network import Network, drain
from tests.testbed.closed_forms import gather_s
from tests.testbed.sim.sims import free_calibration
from tpi.comm.wire import HEADER_BYTES

MASTER = LinkSpec(0.002, 50e6)
WORKER = LinkSpec(0.003, 20e6)


def network(*links, **costs):
    return Network(links, [1.0] * len(links), free_calibration(**costs))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 20)), min_size=1), st.integers(0, 50))
def test_drain_is_a_queue(customers, free):
    expected, ends = free, []
    for at, service in customers:
        expected = max(expected, at) + service
        ends.append(expected)
    at, service = (np.array(x, dtype=np.int64) for x in zip(*customers, strict=True))
    assert drain(at, service, free).tolist() == ends


@pytest.mark.parametrize("payload", [4, 1000, 1500, 30_000])
def test_one_message_takes_what_the_links_take(payload):
    net = network(MASTER, WORKER)
    now = np.array([10_000, 0])
    net.scatter(now, 0, np.array([1]), net.message(payload))
    expected_s = one_way_s(payload + HEADER_BYTES, MASTER, WORKER)
    assert now[0] == 10_000
    assert now[1] == pytest.approx(10_000 + expected_s * 1e9, abs=5)


@pytest.mark.parametrize("payload", [4, 1368, 30_000])
@pytest.mark.parametrize("count", [1, 3, 7])
def test_a_gather_of_equal_workers_takes_what_packets_take(payload, count):
    net = network(MASTER, *[WORKER] * count)
    now = np.zeros(count + 1, dtype=np.int64)
    net.gather(now, np.arange(1, count + 1), 0, net.message(payload), adds=False)
    expected_s = gather_s(payload + HEADER_BYTES, [WORKER] * count, MASTER)
    # Here packets come evenly, there each at its moment: they differ by a packet of each worker.
    slack_s = count * serialise_s(1500, MASTER)
    assert now[0] == pytest.approx(expected_s * 1e9, abs=slack_s * 1e9 + 10)


def test_a_down_link_is_busy_until_it_is_through():
    net = network(LinkSpec(), LinkSpec(0.0, 8e6))
    message, now = net.message(920), np.array([0, 0])
    net.scatter(now, 0, np.array([1]), message)
    first = now[1]
    now[:] = 0
    net.scatter(now, 0, np.array([1]), message)
    assert now[1] == 2 * first == 2 * wire_bytes(1000) * 1000


def test_processors_handle_messages_one_after_another():
    net = network(*[LinkSpec()] * 4, send_s=1e-6, recv_s=2e-6, packet_s=5e-7)
    now = np.zeros(4, dtype=np.int64)
    net.gather(now, np.array([1, 2, 3]), 0, net.message(4))
    assert now.tolist() == [1500 + 3 * 2500, 1500, 1500, 1500]
    net.scatter(now, 0, np.array([1, 2, 3]), net.message(4))
    assert (now - 9000).tolist() == [4500, 1500 + 2500, 3000 + 2500, 4500 + 2500]


def test_a_sum_takes_its_bytes():
    net = network(*[LinkSpec()] * 3, sum_bps=1e6)
    now = np.zeros(3, dtype=np.int64)
    net.gather(now, np.array([1, 2]), 0, net.message(1000))
    assert now[0] == 2_000_000
