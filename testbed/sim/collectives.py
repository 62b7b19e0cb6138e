"""Sums and broadcasts on a `Network`; an allreduce's own class says which messages it sends.

A sum takes every rank's clock and moves it on to when that rank continues. In a steady state ranks
come to a sum in the same order and at the same distances again and again; then `Collectives` uses
the answer that it has. That is exact, because only distances count and they are whole nanoseconds.
"""

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from testbed.sim.network import Ints, Message, Network
from testbed.sim.ring_turns import Turn, make_turn, run_turn, swap
from tpi.comm.allreduces.base import chunks
from tpi.comm.allreduces.registry import find_allreduce
from tpi.ranks import MASTER_RANK

_KEPT = 512  # answers, each of a few KiB


class Collectives:
    """Sums and broadcasts over all ranks, by an allreduce's name.

    An element on the wire has `itemsize` bytes. `call` is a sum's cost to each rank beside its
    messages, in nanoseconds. One rank alone pays none of it, because it was measured as the excess
    of two ranks over one.
    """

    def __init__(self, network: Network, algorithm: str, itemsize: int, call: Ints) -> None:
        self._network = network
        self._itemsize = itemsize
        self._call = call
        self._workers = np.arange(1, network.size, dtype=np.int64)
        self._algorithm = find_allreduce(algorithm)
        self._clocks = _Clocks(network, itemsize)
        self._known: OrderedDict[tuple[int, bytes], tuple[Ints, ...]] = OrderedDict()

    def all_reduce(self, now: Ints, count: int) -> None:
        """Sum `count` elements onto all ranks."""
        if self._network.size == 1:
            return
        now += self._call
        base = int(now.min())
        key = (count, self._situation(now, base))
        known = self._known.get(key)
        if known is None:
            self._known[key] = self._answer(now, base, count)
            if len(self._known) > _KEPT:
                self._known.popitem(last=False)
            return
        self._known.move_to_end(key)
        network, (after, up, down, messages, num_bytes) = self._network, known
        np.add(after, base, out=now)
        np.add(up, base, out=network.up)
        np.add(down, base, out=network.down)
        network.messages += messages
        network.num_bytes += num_bytes

    def _situation(self, now: Ints, base: int) -> bytes:
        """All that a sum depends on: what was over before it began does not count."""
        network = self._network
        busy = np.maximum(np.concatenate((network.up, network.down)) - base, 0)
        return (now - base).tobytes() + busy.tobytes()

    def _answer(self, now: Ints, base: int, count: int) -> tuple[Ints, ...]:
        network = self._network
        messages, num_bytes = network.messages.copy(), network.num_bytes.copy()
        np.maximum(network.up, base, out=network.up)
        np.maximum(network.down, base, out=network.down)
        self._clocks.now = now
        self._algorithm.simulate(self._clocks, count)
        return (
            now - base, network.up - base, network.down - base,
            network.messages - messages, network.num_bytes - num_bytes,
        )  # fmt: skip

    def reduce(self, now: Ints, count: int) -> None:
        """Sum onto the master alone, straight from all."""
        if self._network.size == 1:
            return
        now += self._call
        for start, stop in chunks(count):
            message = self._network.message((stop - start) * self._itemsize)
            self._network.gather(now, self._workers, MASTER_RANK, message)

    def broadcast(self, now: Ints, count: int) -> None:
        """Send float32 elements from the master to all."""
        if self._network.size > 1:
            message = self._network.message(4 * count)
            self._network.scatter(now, MASTER_RANK, self._workers, message)


class _Clocks:
    """The `MessageNetwork` of one sum: every message moves the clocks of its ranks, `now`."""

    def __init__(self, network: Network, itemsize: int) -> None:
        self.world_size = network.size
        self.now: Ints = np.zeros(network.size, dtype=np.int64)
        self._network = network
        self._itemsize = itemsize
        self._turns: dict[tuple[tuple[int, ...], bool], Turn] = {}

    def _message(self, count: int) -> Message:
        return self._network.message(count * self._itemsize)

    def gather(self, sources: Sequence[int], target: int, count: int) -> None:
        self._network.gather(self.now, np.asarray(sources), target, self._message(count))

    def scatter(self, source: int, targets: Sequence[int], count: int) -> None:
        self._network.scatter(self.now, source, np.asarray(targets), self._message(count))

    def scatter_and_gather(self, centre: int, others: Sequence[int], down: int, up: int) -> None:
        ranks, began = np.asarray(others), self.now.copy()
        self.scatter(centre, others, down)
        received = self.now[ranks]
        self.now[ranks] = began[ranks]
        self.gather(others, centre, up)
        self.now[ranks] = np.maximum(self.now[ranks], received)

    def turn(self, counts: Sequence[int], *, adds: bool) -> None:
        key = (tuple(counts), adds)
        turn = self._turns.get(key)
        if turn is None:
            turn = make_turn(self._network, self._payload(counts), adds=adds)
            self._turns[key] = turn
        run_turn(self._network, self.now, turn)

    def swap_slices(self, counts: Sequence[int]) -> None:
        self._swap(self._payload(counts), adds=True)

    def swap(self, counts: Sequence[int], *, adds: bool) -> None:
        self._swap(self._payload(counts)[:, None], adds=adds)

    def _swap(self, payload: Ints, *, adds: bool) -> None:
        square = np.broadcast_to(payload, (self.world_size, self.world_size))
        swap(self._network, self.now, square, adds=adds)

    def _payload(self, counts: Sequence[int]) -> Ints:
        return np.array(counts, dtype=np.int64) * self._itemsize
