"""The tree: children send to their parent, up to the master; the sum comes down the same way."""

from dataclasses import dataclass
from functools import cache

from tpi.comm.allreduces.base import AllReduceAlgorithm, Call, MessageNetwork, chunks


@dataclass(frozen=True, slots=True)
class Place:
    """Where a rank is in a tree of depth at most 2, as flat as that allows."""

    parent: int | None
    children: tuple[int, ...]


@cache
def make_place(rank: int, world_size: int) -> Place:
    """Rank r hangs under (r - 1) // k, with the least k for which depth 2 suffices."""
    k = arity(world_size)
    children = range(k * rank + 1, min(k * rank + k + 1, world_size))
    return Place((rank - 1) // k if rank else None, tuple(children))


def arity(world_size: int) -> int:
    """Children of an inner node of the tree."""
    k = 1
    while 1 + k + k * k < world_size:
        k += 1
    return k


class Tree(AllReduceAlgorithm):
    """Adds children after their parent, and rounds at every hop.

    Cost: 2 (N - 1) messages, at most 4 d + 4 k S / B with k children a node.
    """

    name = "tree"
    in_paper = True

    def run(self, call: Call, num_elements: int) -> None:
        """Sum the children's, send it up, and send down what comes back."""
        place = make_place(call.transport.ranks.rank, call.transport.ranks.world_size)
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

    def simulate(self, network: MessageNetwork, num_elements: int) -> None:
        """Up from the lowest level, then down."""
        size = network.world_size
        places = [(rank, make_place(rank, size).children) for rank in range(size)]
        inner = [(rank, children) for rank, children in places if children]
        for start, stop in chunks(num_elements):
            for rank, children in reversed(inner):
                network.gather(children, rank, stop - start)
            for rank, children in inner:
                network.scatter(rank, children, stop - start)

    def closed_form_s(self, world_size: int, delay_s: float, payload_s: float) -> float:
        """Twice the way to the root, whose port takes the sums of its children as they come.

        A child with c leaves sends its sum after d + c S; it takes d and S.
        """
        children = make_place(0, world_size).children
        leaves = [len(make_place(child, world_size).children) for child in children]
        ready = sorted(delay_s + count * payload_s if count else 0.0 for count in leaves)
        free_s = 0.0
        for ready_s in ready:
            free_s = max(free_s, ready_s + delay_s) + payload_s
        return 2 * free_s

    def inbox_chunks(self, world_size: int) -> int:
        """One from each child."""
        return arity(world_size)

    def published_traversals(self, world_size: int) -> int:
        """Two levels, up and down."""
        return 4
