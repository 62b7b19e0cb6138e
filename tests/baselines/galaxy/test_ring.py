"""The rings: what they sum and gather, in which order, and that transfers and work overlap."""

import threading
from contextlib import ExitStack

import pytest
import torch

from baselines.galaxy.ring import Place, Ring, RingSender
from tests.comm.peers import group, outcomes, run_ranks, socket_group
from tpi.comm.transport import WireCounters
from tpi.comm.wire import Op
from tpi.errors import CommError, PeerLostError
from tpi.ranks import Ranks
from tpi.trace import Tracer

PLACE = Place(3, 1, Op.FFN)
TILES = {
    1: [(0, 4)],
    2: [(0, 3), (3, 5)],
    3: [(0, 2), (2, 2), (2, 6)],
    4: [(0, 1), (1, 4), (4, 6), (6, 6)],
}
WIDTH = 5


def rows(rank: int, num_rows: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rank)
    return torch.randn(num_rows, WIDTH, generator=generator)


def on_every_rank(kind, world_size, overlap, work):
    def run(mesh):
        with RingSender(mesh, Tracer(), overlap=overlap) as courier:
            return work(mesh.ranks, Ring(mesh.ranks, courier), TILES[world_size])

    return run_ranks(group(kind, world_size), run)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("kind", ["memory", "socket"])
def test_gather_brings_every_tile_once_and_own_first(kind, overlap, world_size):
    whole = rows(9, TILES[world_size][-1][1])

    def work(ranks, ring, tiles):
        here = torch.full_like(whole, torch.nan)
        own = slice(*tiles[ranks.rank])
        here[own] = whole[own]
        used = []

        def use(start, stop):
            assert torch.equal(here[start:stop], whole[start:stop])
            used.append((start, stop))

        ring.gather(here, tiles, PLACE, use)
        assert torch.equal(here, whole)
        return used

    for rank, used in enumerate(on_every_rank(kind, world_size, overlap, work)):
        tiles = TILES[world_size]
        turns = [tiles[(rank - turn) % world_size] for turn in range(world_size)]
        assert used == [tile for tile in turns if tile[0] < tile[1]]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("kind", ["memory", "socket"])
def test_scatter_sums_each_tile_in_the_order_of_the_ring(kind, overlap, world_size):
    num_rows = TILES[world_size][-1][1]
    parts = [rows(rank, num_rows) for rank in range(world_size)]

    def work(ranks, ring, tiles):
        return ring.scatter(WIDTH, tiles, PLACE, lambda a, b: parts[ranks.rank][a:b].clone())

    for rank, got in enumerate(on_every_rank(kind, world_size, overlap, work)):
        start, stop = TILES[world_size][rank]
        order = [(rank + 1 + turn) % world_size for turn in range(world_size)]
        total = parts[order[0]][start:stop].clone()
        for other in order[1:]:
            total = total + parts[other][start:stop]
        assert torch.equal(got, total)


class Recorder:
    """A transport that moves nothing, and notes what happens when; `free` lets transfers end."""

    def __init__(self, ranks, error=None):
        self.ranks = ranks
        self.counters = WireCounters()
        self.log: list[str] = []
        self.threads: set[int] = set()
        self.begun = threading.Semaphore(0)
        self.free = threading.Semaphore(0)
        self.error = error
        self.users = 0

    def transfer(self, sends, recvs, on_recv=None):
        self.users += 1
        assert self.users == 1  # channels are never used by two threads at once
        self.threads.add(threading.get_ident())
        leaving = [send.header.start for send in sends]
        coming = [recv.expect.header.start for recv in recvs]
        self.log.append(f"begin {leaving} {coming}")
        self.begun.release()
        assert self.free.acquire(timeout=10)
        self.log.append("end")
        self.users -= 1
        if self.error is not None:
            raise self.error

    def check(self):
        pass

    def give_up(self):
        self.log.append("give up")
        self.error = CommError("given up")
        self.free.release(10)

    def abort(self, error):
        pass


@pytest.mark.parametrize("overlap", [True, False])
def test_tiles_are_used_while_the_next_ones_travel(overlap):
    """The transfer of a turn ends only after the product it overlaps with: else this hangs."""
    transport = Recorder(Ranks(1, 3))

    def use(start, _stop):
        if overlap and start != 4:  # the tile of the last turn: nothing travels any more
            assert transport.begun.acquire(timeout=10)
        transport.log.append(f"use {start}")
        transport.free.release()

    if not overlap:
        transport.free.release(10)
    with RingSender(transport, Tracer(), overlap=overlap) as courier:
        ring = Ring(transport.ranks, courier)
        ring.gather(torch.zeros(6, WIDTH), [(0, 2), (2, 4), (4, 6)], PLACE, use)
    if overlap:
        assert transport.log == [
            "begin [2] [0]", "use 2", "end", "begin [0] [4]", "use 0", "end", "use 4",
        ]  # fmt: skip
        assert threading.get_ident() not in transport.threads
    else:
        assert transport.log == [
            "begin [2] [0]", "end", "use 2", "begin [0] [4]", "end", "use 0", "use 4",
        ]  # fmt: skip
        assert transport.threads == {threading.get_ident()}


def test_parts_are_made_while_the_sums_before_them_travel():
    transport = Recorder(Ranks(1, 3))
    made: list[int] = []

    def make(start, stop):
        if made:
            assert transport.begun.acquire(timeout=10)
        made.append(start)
        transport.log.append(f"make {start}")
        if len(made) > 1:
            transport.free.release()
        return torch.ones(stop - start, WIDTH)

    tracer = Tracer(keep=True)
    with RingSender(transport, tracer, overlap=True) as courier:
        Ring(transport.ranks, courier).scatter(WIDTH, [(0, 2), (2, 4), (4, 6)], PLACE, make)
    assert transport.log == [
        "make 0", "begin [0] [4]", "make 4", "end", "begin [4] [2]", "make 2", "end",
    ]  # fmt: skip
    assert [span.name for span in tracer.spans] == ["allreduce"] * 2  # the waits alone


def test_an_error_of_the_transfer_is_raised_where_the_caller_waits():
    error = PeerLostError("rank 2 is gone")
    transport = Recorder(Ranks(1, 3), error)
    transport.free.release()
    used = []
    with RingSender(transport, Tracer(), overlap=True) as courier:
        ring = Ring(transport.ranks, courier)
        with pytest.raises(PeerLostError) as caught:
            ring.gather(
                torch.zeros(3, 1), [(0, 1), (1, 2), (2, 3)], PLACE, lambda a, _b: used.append(a)
            )
    assert caught.value is error
    assert used == [1]


class Interrupted(BaseException):
    pass


def test_an_error_of_the_work_ends_the_transfer_and_is_raised_itself():
    transport = Recorder(Ranks(1, 3))

    def use(start, stop):
        assert transport.begun.acquire(timeout=10)
        raise Interrupted

    with ExitStack() as stack:
        courier = stack.enter_context(RingSender(transport, Tracer(), overlap=True))
        with pytest.raises(Interrupted):
            Ring(transport.ranks, courier).gather(
                torch.zeros(3, 1), [(0, 1), (1, 2), (2, 3)], PLACE, use
            )
        assert transport.log == ["begin [1] [0]", "give up", "end"]


@pytest.mark.parametrize("overlap", [True, False])
def test_work_that_fails_on_one_rank_ends_every_rank(overlap):
    def work(mesh):
        def use(start, stop):
            if mesh.ranks.rank == 1:
                raise ValueError("of rank 1")

        with RingSender(mesh, Tracer(), overlap=overlap) as courier:
            ring = Ring(mesh.ranks, courier)
            for step in range(50):
                place = Place(step, 0, Op.FFN)
                ring.gather(torch.zeros(3, WIDTH), [(0, 1), (1, 2), (2, 3)], place, use)

    first, second, third = outcomes(socket_group(3), work)
    assert isinstance(second, ValueError)
    for error in (first, third):
        assert isinstance(error, PeerLostError)
        assert "rank 1 is gone: ValueError of rank 1" in str(error)
