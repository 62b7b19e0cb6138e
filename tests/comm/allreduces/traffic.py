"""What one sum puts on the wire: the messages of `simulate`, counted. No I/O, no torch."""

from collections.abc import Sequence

from tpi.comm.allreduces.registry import find_allreduce
from tpi.comm.wire import HEADER_BYTES


def traffic(
    allreduce: str, rank: int, world_size: int, num_elements: int, itemsize: int
) -> tuple[int, int]:
    """Messages and bytes (headers included) that a rank sends in one allreduce."""
    counter = _Counter(world_size)
    if world_size > 1:
        find_allreduce(allreduce).simulate(counter, num_elements)
    messages, elements = counter.messages[rank], counter.elements[rank]
    return messages, messages * HEADER_BYTES + elements * itemsize


class _Counter:
    """A `MessageNetwork` that counts what every rank sends."""

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self.messages = [0] * world_size
        self.elements = [0] * world_size

    def _send(self, rank: int, count: int, copies: int = 1) -> None:
        if count:
            self.messages[rank] += copies
            self.elements[rank] += copies * count

    def gather(self, sources: Sequence[int], target: int, count: int) -> None:
        for source in sources:
            self._send(source, count)

    def scatter(self, source: int, targets: Sequence[int], count: int) -> None:
        self._send(source, count, len(targets))

    def scatter_and_gather(self, centre: int, others: Sequence[int], down: int, up: int) -> None:
        self.scatter(centre, others, down)
        self.gather(others, centre, up)

    def turn(self, counts: Sequence[int], *, adds: bool) -> None:
        for rank, count in enumerate(counts):
            self._send(rank, count)

    def swap_slices(self, counts: Sequence[int]) -> None:
        for rank in range(self.world_size):
            for peer, count in enumerate(counts):
                if peer != rank:
                    self._send(rank, count)

    def swap(self, counts: Sequence[int], *, adds: bool) -> None:
        for rank, count in enumerate(counts):
            self._send(rank, count, self.world_size - 1)
