"""One sum on its way: the vector, the buffers, and the frames that carry pieces of it.

Sums are formed in float32 and in a fixed order, since float sums depend on it. With bfloat16 on
the wire a contribution is rounded when it is sent, our own as well, and a sum is rounded once when
it is sent on. Needs no torch to be imported.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tpi.comm.transport import Recv, Send, Transport
from tpi.comm.wire import Expect, FrameHeader, FrameType, Op, WireDtype

if TYPE_CHECKING:
    import torch

    from tpi.comm.vector import Inbox, WireVector


@dataclass(slots=True)
class Call:
    """One collective call: its place in the plan, its vector and the buffers to use."""

    transport: Transport
    vector: "WireVector"
    inbox: "Inbox"
    scratch: "torch.Tensor"
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
