"""The five ways to a sum. Each takes one `Call` and leaves the sum in its vector.

Sums are formed in float32 and in a fixed order, since float sums depend on it: rank 0, 1, 2, ...
for star, direct and exchange (these three give the same bits), children after their parent for
the tree, along the ring for the ring. With bfloat16 on the wire a contribution is rounded when it
is sent, our own as well, and a sum is rounded once when it is sent on; tree and ring send partial
sums on, so they round at every hop.

Costs are for one sum of S bytes over N ranks, on a link of one-way delay d and rate B; messages
and bytes of every rank are in `topology.traffic`.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from tpi.comm.topology import Tree, chunks, slices
from tpi.comm.transport import Recv, Send, Transport
from tpi.comm.vector import Inbox, WireVector
from tpi.comm.wire import Expect, FrameHeader, FrameType, Op, WireDtype
from tpi.ranks import MASTER_RANK


@dataclass(slots=True)
class Call:
    """One collective call: its place in the plan, its vector and the buffers to use."""

    transport: Transport
    vector: WireVector
    inbox: Inbox
    scratch: torch.Tensor
    dtype: WireDtype
    step: int
    layer: int
    op: Op

    def header(self, start: int, stop: int) -> FrameHeader:
        """The header of the frame that carries a piece of the vector."""
        count = stop - start
        return FrameHeader(
            FrameType.TENSOR, 0, self.step, self.layer, self.op, self.dtype, start, (count,), 0,
            count * self.dtype.itemsize,
        )  # fmt: skip

    def sends(self, peers: Iterable[int], start: int, stop: int) -> list[Send]:
        """The same piece to several peers."""
        if start == stop:
            return []
        header, payload = self.header(start, stop), self.vector.bytes(start, stop)
        return [Send(peer, header, payload) for peer in peers]

    def recvs(self, peers: Iterable[int], start: int, stop: int) -> list[Recv]:
        """The same piece from several peers, into the places of the inbox in that order."""
        if start == stop:
            return []
        expect, count = Expect(self.header(start, stop)), stop - start
        return [Recv(p, expect, self.inbox.bytes(i, count)) for i, p in enumerate(peers)]

    def recv_in_place(self, peer: int, start: int, stop: int) -> list[Recv]:
        """A piece that replaces ours."""
        if start == stop:
            return []
        return [Recv(peer, Expect(self.header(start, stop)), self.vector.bytes(start, stop))]

    def adder(self, num_recvs: int, start: int, stop: int) -> Callable[[int], None]:
        """Adds what arrives to our piece, in order of rank and as soon as that order allows."""
        total, inbox, count = self.vector.values[start:stop], self.inbox, stop - start
        here = [False] * num_recvs
        following = 0

        def on_recv(index: int) -> None:
            nonlocal following
            here[index] = True
            while following < num_recvs and here[following]:
                total.add_(inbox.values(following, count))
                following += 1

        return on_recv

    def sum_by_rank(self, start: int, stop: int) -> None:
        """Our piece becomes the sum of ours and those in the inbox, in order of rank."""
        rank, count = self.transport.ranks.rank, stop - start
        own = self.vector.values[start:stop]
        parts = [self.inbox.values(i, count) for i in range(self.transport.ranks.world_size - 1)]
        parts.insert(rank, own)
        total = self.scratch[:count].copy_(parts[0])
        for part in parts[1:]:
            total.add_(part)
        own.copy_(total)


def star(call: Call, num_elements: int) -> None:
    """All send to the master, the master sums and sends to all.

    Cost: 2 (N - 1) messages, all through the master: 2 d + 2 (N - 1) S / B. The sum of a piece
    goes down while the next one comes up.
    """
    if call.transport.ranks.is_master:
        _star_master(call, list(chunks(num_elements)), call.transport.ranks.workers)
        return
    send_to: list[int] = [MASTER_RANK]
    back: tuple[int, int] | None = None
    for start, stop in chunks(num_elements):
        call.vector.pack(start, stop)
        recvs = call.recv_in_place(MASTER_RANK, *back) if back else []
        call.transport.transfer(call.sends(send_to, start, stop), recvs)
        if back:
            call.vector.unpack(*back)
        back = (start, stop)
    if back:
        call.transport.transfer([], call.recv_in_place(MASTER_RANK, *back))
        call.vector.unpack(*back)


def _star_master(call: Call, pieces: Sequence[tuple[int, int]], workers: Sequence[int]) -> None:
    sends: list[Send] = []
    for start, stop in pieces:
        call.vector.round(start, stop)
        recvs = call.recvs(workers, start, stop)
        call.transport.transfer(sends, recvs, call.adder(len(recvs), start, stop))
        call.vector.round(start, stop)
        sends = call.sends(workers, start, stop)
    call.transport.transfer(sends, [])


def star_reduce(call: Call, num_elements: int) -> None:
    """All send to the master, which alone has the sum. Cost: N - 1 messages, d + (N - 1) S / B."""
    ranks = call.transport.ranks
    for start, stop in chunks(num_elements):
        call.vector.round(start, stop)
        if ranks.is_master:
            recvs = call.recvs(ranks.workers, start, stop)
            call.transport.transfer([], recvs, call.adder(len(recvs), start, stop))
        else:
            call.transport.transfer(call.sends([MASTER_RANK], start, stop), [])


def tree(call: Call, num_elements: int, place: Tree) -> None:
    """Children send to their parent, up to the master; the sum comes down the same way.

    Cost: 2 (N - 1) messages, at most 4 d + 4 k S / B with k children a node.
    """
    for start, stop in chunks(num_elements):
        call.vector.round(start, stop)
        if place.children:
            recvs = call.recvs(place.children, start, stop)
            call.transport.transfer([], recvs, call.adder(len(recvs), start, stop))
            call.vector.round(start, stop)
        if place.parent is not None:
            call.transport.transfer(call.sends([place.parent], start, stop), [])
            call.transport.transfer([], call.recv_in_place(place.parent, start, stop))
            call.vector.unpack(start, stop)
        call.transport.transfer(call.sends(place.children, start, stop), [])


def ring(call: Call, num_elements: int) -> None:
    """Slices travel round and are summed on the way; then the sums travel round.

    Cost: 2 (N - 1) messages a rank of S / N bytes: 2 (N - 1) (d + S / (N B)).
    """
    ranks = call.transport.ranks
    size, right, left = ranks.world_size, (ranks.rank + 1) % ranks.world_size, ranks.rank - 1
    left %= size
    for start, stop in chunks(num_elements):
        parts = slices(start, stop, size)
        for turn in range(size - 1):
            out, into = parts[(ranks.rank - turn) % size], parts[(ranks.rank - turn - 1) % size]
            call.vector.pack(*out)
            recvs = call.recvs([left], *into)
            call.vector.round(*into)
            call.transport.transfer(call.sends([right], *out), recvs, call.adder(len(recvs), *into))
        call.vector.round(*parts[right])
        for turn in range(size - 1):
            out, into = parts[(right - turn) % size], parts[(ranks.rank - turn) % size]
            call.transport.transfer(call.sends([right], *out), call.recv_in_place(left, *into))
            call.vector.unpack(*into)


def direct(call: Call, num_elements: int) -> None:
    """Every rank sums one slice and sends it to all, straight between all pairs.

    Cost: 2 (N - 1) messages a rank of S / N bytes: 2 d + 2 (N - 1) S / (N B), every port alike.
    """
    ranks = call.transport.ranks
    for start, stop in chunks(num_elements):
        parts = slices(start, stop, ranks.world_size)
        mine = parts[ranks.rank]
        call.vector.round(start, stop)
        sends = [s for p in ranks.peers for s in call.sends([p], *parts[p])]
        call.transport.transfer(sends, call.recvs(ranks.peers, *mine))
        call.sum_by_rank(*mine)
        call.vector.round(*mine)
        recvs = [r for p in ranks.peers for r in call.recv_in_place(p, *parts[p])]
        call.transport.transfer(call.sends(ranks.peers, *mine), recvs)
        for peer in ranks.peers:
            call.vector.unpack(*parts[peer])


def exchange(call: Call, num_elements: int) -> None:
    """Everybody sends everything to everybody, and all sum alike.

    Cost: N - 1 messages a rank of S bytes: d + (N - 1) S / B, one traversal only.
    """
    peers = call.transport.ranks.peers
    for start, stop in chunks(num_elements):
        call.vector.round(start, stop)
        call.transport.transfer(call.sends(peers, start, stop), call.recvs(peers, start, stop))
        call.sum_by_rank(start, stop)
        call.vector.round(start, stop)
