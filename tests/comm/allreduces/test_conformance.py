"""What every allreduce keeps, built in or not: one sum, its messages, its cost."""

import math

import numpy as np
import pytest
import torch

from testbed.links.link import LinkSpec
from testbed.sim.collectives import Collectives
from testbed.sim.network import Network
from tests.comm.allreduces.traffic import traffic
from tests.comm.parts import part, sum_by_rank
from tests.comm.peers import group, run_ranks, socket_group
from tests.testbed.sim.sims import free_calibration
from tpi.comm.allreduce import AllReduce
from tpi.comm.allreduces.base import CHUNK_ELEMENTS
from tpi.comm.allreduces.registry import allreduce_names, find_allreduce
from tpi.comm.wire import Op
from tpi.trace import Tracer

torch.set_num_threads(1)
pytestmark = pytest.mark.usefixtures("toys")
NAMES = (*allreduce_names(), "chain")
BY_RANK = ("star", "direct", "exchange")
SIZES = (1, 5, 1001, CHUNK_ELEMENTS + 7)
ITEMSIZE = {"float32": 4, "bfloat16": 2}
RATE = 300e6
LINK = LinkSpec(0.001, RATE)


def sums(mesh, name, dtype, sizes=SIZES):
    """All sums of one rank, and what each sent."""
    allreduce = AllReduce(mesh, name, dtype, max(sizes), Tracer())
    results, sent = [], []
    for step, count in enumerate(sizes):
        values, before = part(mesh.ranks.rank, count), mesh.counters
        messages, num_bytes = before.messages_sent, before.bytes_sent
        allreduce.all_reduce(values, step=step, layer=1, op=Op.FFN)
        results.append(values)
        sent.append((mesh.counters.messages_sent - messages, mesh.counters.bytes_sent - num_bytes))
    return results, sent


def simulated(name, size, count, itemsize=4, link=LINK):
    """When the last rank has the sum, on hosts that take no time, and what each rank sent."""
    network = Network([link] * size, [1.0] * size, free_calibration())
    now = np.zeros(size, dtype=np.int64)
    Collectives(network, name, itemsize, now.copy()).all_reduce(now, count)
    sent = zip(network.messages.tolist(), network.num_bytes.tolist(), strict=True)
    return now.max() / 1e9, list(sent)


@pytest.mark.parametrize("world_size", range(1, 6))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["memory", "socket"])
def test_all_ranks_hold_the_same_right_sum(kind, name, dtype, world_size):
    ranks = run_ranks(group(kind, world_size), lambda mesh: sums(mesh, name, dtype))
    for index, count in enumerate(SIZES):
        result = ranks[0][0][index]
        for rank, (results, sent) in enumerate(ranks):
            assert torch.equal(results[index], result)
            assert sent[index] == traffic(name, rank, world_size, count, ITEMSIZE[dtype])
        exact = sum(part(rank, count).double() for rank in range(world_size))
        tolerance = 1e-5 if dtype == "float32" or world_size == 1 else 0.12
        assert (result.double() - exact).abs().max() < tolerance
        if name in BY_RANK:
            assert torch.equal(result, sum_by_rank(world_size, count, dtype))


@pytest.mark.parametrize("name", NAMES)
def test_two_runs_give_the_same_bits(name):
    first, second = (
        run_ranks(socket_group(4), lambda mesh: sums(mesh, name, "float32", (999,))[0][0])
        for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 17])
@pytest.mark.parametrize("count", [3, 8, 3200, CHUNK_ELEMENTS + 77])
@pytest.mark.parametrize("itemsize", [2, 4])
def test_simulated_messages_and_bytes_are_those_that_are_counted(name, size, count, itemsize):
    _, sent = simulated(name, size, count, itemsize)
    assert sent == [traffic(name, rank, size, count, itemsize) for rank in range(size)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [2, 3, 8, 13])
def test_cost_of_the_delays_is_what_is_simulated(name, size):
    took_s, _ = simulated(name, size, size, link=LinkSpec(0.005, None))
    cost_s = find_allreduce(name).cost_s(
        world_size=size, num_bytes=4 * size, delay_s=0.01, rate_bps=math.inf
    )
    assert took_s == pytest.approx(cost_s, abs=1e-7)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [2, 3, 8, 16])
@pytest.mark.parametrize("count", [8192, 65536])
def test_cost_is_a_bound_that_the_simulated_time_keeps(name, size, count):
    took_s, _ = simulated(name, size, count)
    cost_s = find_allreduce(name).cost_s(
        world_size=size, num_bytes=4 * count, delay_s=0.002, rate_bps=RATE
    )
    assert cost_s < took_s < 2.2 * cost_s


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [2, 5, 8])
def test_a_worker_receives_into_no_more_chunks_than_are_planned(name, size):
    assert 1 <= find_allreduce(name).inbox_chunks(size) <= size - 1


@pytest.mark.parametrize("name", NAMES)
def test_who_needs_no_links_between_workers_sends_over_none(name):
    meshes = socket_group(4, star=not find_allreduce(name).needs_peer_links)
    results = run_ranks(meshes, lambda mesh: sums(mesh, name, "float32", (64,))[0][0])
    assert torch.allclose(results[0], sum_by_rank(4, 64, "float32"), atol=1e-5)
