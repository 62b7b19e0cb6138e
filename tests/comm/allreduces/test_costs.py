import pytest

from tests.comm.allreduces.traffic import traffic
from tpi.comm.allreduces.registry import allreduce_names, find_allreduce
from tpi.comm.allreduces.star import Star
from tpi.errors import ConfigError

# Eight devices, 4 ms one way, 300 Mbit/s ports, 32 KiB: S = 0.874 ms.
S = 8 * (32 << 10) / 300e6


def ours(algorithm: str, world_size: int = 8) -> float:
    return find_allreduce(algorithm).cost_s(
        world_size=world_size, num_bytes=32 << 10, delay_s=0.004, rate_bps=300e6
    )


def chained(world_size: int) -> float:
    return Star().chained_s(
        world_size=world_size, num_bytes=32 << 10, delay_s=0.004, rate_bps=300e6
    )


@pytest.mark.parametrize(("algorithm", "hops"), [("star", 8), ("tree", 16), ("ring", 56)])
def test_link_latency_is_8_16_and_56_hops_on_the_papers_testbed(algorithm, hops):
    assert find_allreduce(algorithm).published_link_s(hop_s=0.001) == pytest.approx(hops * 0.001)


@pytest.mark.parametrize(
    ("algorithm", "expected"),
    [
        ("star", 0.008 + 14 * S),
        ("tree", 2 * (2 * 0.004 + 4 * S)),  # rank 1 has three leaves, and comes last
        ("ring", 14 * (0.004 + S / 8)),
        ("direct", 0.008 + 14 * S / 8),
        ("exchange", 0.004 + 7 * S),
    ],
)
def test_ours_counts_every_payload_that_passes_a_port(algorithm, expected):
    assert ours(algorithm) == pytest.approx(expected)


def test_chained_star_pays_a_payload_per_device_once():
    assert chained(8) == pytest.approx(0.008 + 8 * S)
    assert chained(1) == 0


@pytest.mark.parametrize("algorithm", allreduce_names())
def test_one_device_exchanges_nothing(algorithm):
    assert ours(algorithm, 1) == 0


@pytest.mark.parametrize(
    ("world_size", "delays", "payloads"),
    [(2, 2, 2), (3, 4, 4), (4, 4, 4), (7, 4, 8), (8, 4, 8), (13, 4, 12)],
)
def test_tree_counts_two_levels_and_the_payloads_that_wait_for_each_other(
    world_size, delays, payloads
):
    assert ours("tree", world_size) == pytest.approx(delays * 0.004 + payloads * S)


def test_traffic_of_a_whole_sum_is_what_the_algorithms_promise():
    world_size, count = 8, 8192
    size = 4 * count
    totals = {
        name: [sum(t) for t in zip(*(traffic(name, r, 8, count, 4) for r in range(8)), strict=True)]
        for name in allreduce_names()
    }
    n = world_size
    assert totals["star"] == totals["tree"] == [2 * (n - 1), 2 * (n - 1) * (80 + size)]
    scattered = [2 * (n - 1) * n, 2 * (n - 1) * (80 * n + size)]
    assert totals["ring"] == totals["direct"] == scattered
    assert totals["exchange"] == [(n - 1) * n, (n - 1) * n * (80 + size)]


@pytest.mark.parametrize(
    "call",
    [
        lambda: find_allreduce("direct").published_link_s(hop_s=1),
        lambda: find_allreduce("exchange").published_link_s(hop_s=1),
        lambda: ours("star2"),
    ],
)
def test_unknown_algorithms_are_refused(call):
    with pytest.raises(ConfigError, match="allreduce"):
        call()
