"""What an allreduce is: the code that runs, its cost in closed form, its messages for a simulator.

A new one derives from `AllReduceAlgorithm`, in a module beside this one or in a package of its
own, which names the class as an entry point of the group `tpi.allreduces`. `run` must be there;
without `closed_form_s` it cannot be planned, without `simulate` not be simulated, and the error
says so. `Call` has what `run` works with. Modules of allreduces import neither torch nor NumPy,
which planning does without.

Sums are formed in float32 and in a fixed order, since float sums depend on it. With bfloat16 on
the wire a contribution is rounded when it is sent, our own as well, and a sum is rounded once when
it is sent on.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar, NoReturn, Protocol

from tpi.comm.transport import Recv, Send, Transport
from tpi.comm.wire import Expect, FrameHeader, FrameType, Op, WireDtype
from tpi.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from tpi.comm.vector import Inbox, WireVector

# A sum of more elements goes in pieces of this many (1 MiB of float32), so that buffers stay small
# (the master of a star has one a worker) and the way up overlaps the way down.
CHUNK_ELEMENTS = 1 << 18


def chunks(num_elements: int) -> Iterator[tuple[int, int]]:
    """The pieces [start, stop) that a long vector is summed in."""
    for start in range(0, num_elements, CHUNK_ELEMENTS):
        yield start, min(start + CHUNK_ELEMENTS, num_elements)


def slices(start: int, stop: int, world_size: int) -> list[tuple[int, int]]:
    """Cut [start, stop) into one slice a rank, the longer ones first; some may be empty."""
    size, extra = divmod(stop - start, world_size)
    bounds = [start + r * size + min(r, extra) for r in range(world_size + 1)]
    return list(pairwise(bounds))


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


class MessageNetwork(Protocol):
    """The messages of one sum, in elements; a simulator gives each its time, a counter counts."""

    @property
    def world_size(self) -> int:
        """Number of ranks."""

    def gather(self, sources: Sequence[int], target: int, count: int) -> None:
        """Every source sends `count` elements to the target, which adds them to its own."""

    def scatter(self, source: int, targets: Sequence[int], count: int) -> None:
        """The source sends `count` elements to every target, one after another."""

    def scatter_and_gather(self, centre: int, others: Sequence[int], down: int, up: int) -> None:
        """Like `scatter` of `down`, then `gather` of `up`; but the others send before they wait."""

    def turn(self, counts: Sequence[int], *, adds: bool) -> None:
        """Rank r sends `counts[r]` elements to rank r + 1, all at once; 0 is no message."""

    def swap_slices(self, counts: Sequence[int]) -> None:
        """Every rank sends `counts[p]` elements to every peer p, which adds them to its own."""

    def swap(self, counts: Sequence[int], *, adds: bool) -> None:
        """Rank r sends the same `counts[r]` elements to every peer."""


class AllReduceAlgorithm:
    """One way to a sum that every rank gets. It has no state; one instance serves all ranks."""

    name: ClassVar[str]  # what `allreduce=` and `--allreduce` call it
    needs_peer_links: ClassVar[bool] = True  # workers send to each other, not to the master alone
    # Whether place i of the master's inbox holds all of the i-th worker's vector at the end, so
    # that the master can tell whose part is not finite.
    inbox_is_by_rank: ClassVar[bool] = False
    in_paper: ClassVar[bool] = False  # arXiv:2410.00531 gives its `published_traversals`

    def run(self, call: Call, num_elements: int) -> None:
        """Leave the sum over all ranks in the vector of the call, the same bits on every rank."""
        self._lacks("run", "how it runs")

    def simulate(self, network: MessageNetwork, num_elements: int) -> None:
        """Send the messages of `run` on an abstract network, in their order."""
        self._lacks("simulate", "which messages it sends")

    def closed_form_s(self, world_size: int, delay_s: float, payload_s: float) -> float:
        """Return the least time of one sum between two ranks or more; see `cost_s`.

        A vector of one rank takes a port `payload_s`.
        """
        self._lacks("closed_form_s", "what it costs")

    def inbox_chunks(self, world_size: int) -> int:
        """Most chunks that a worker's inbox ever holds; the planner counts them as memory."""
        return world_size - 1

    def published_traversals(self, world_size: int) -> int:
        """Return how many paths are passed one after another.

        Source: arXiv:2410.00531, Prop. 1 and 2; the general number of devices is ours.
        """
        raise ConfigError(f"allreduce: the paper gives no cost for {self.name!r}")

    def cost_s(self, *, world_size: int, num_bytes: int, delay_s: float, rate_bps: float) -> float:
        """Return the least time of one sum, payloads passing each port one after another.

        `delay_s` is one way between two devices, `rate_bps` bits a second of a port, each way.
        """
        if world_size == 1:
            return 0.0
        return self.closed_form_s(world_size, delay_s, 8 * num_bytes / rate_bps)

    def published_link_s(self, *, hop_s: float, world_size: int = 8) -> float:
        """Return the latency part of one sum on the paper's testbed.

        Source: arXiv:2410.00531, Prop. 1 and 2, topology of A.7 (four links between two devices).
        """
        return self.published_traversals(world_size) * 4 * hop_s

    def _lacks(self, method: str, what: str) -> NoReturn:
        raise ConfigError(
            f"allreduce {self.name}: {type(self).__name__} does not say {what}: it has no {method}"
        )
