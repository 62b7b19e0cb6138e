"""The five ways to a sum, message by message: what `tpi/comm/algorithms.py` does, on a `Network`.

Each takes every rank's clock and moves it on to when that rank goes on with something else. In a
steady state ranks come to a sum in the same order and at the same distances again and again;
`Collectives` then takes the answer that it has, which is exact: nothing but distances counts, and
they are whole nanoseconds. Read `Collectives.all_reduce`.
"""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial

import numpy as np

from testbed.sim.network import Ints, Network
from testbed.sim.rounds import Ring, swap
from tpi.comm.topology import ALGORITHMS, chunks, make_tree, slices
from tpi.errors import ConfigError
from tpi.ranks import MASTER_RANK

_KEPT = 512  # answers, each of a few KiB
_Run = Callable[[Ints, int], None]


class Collectives:
    """Sums and broadcasts over all ranks.

    Args:
        network: Links and processors.
        algorithm: One of `tpi.comm.topology.ALGORITHMS`.
        itemsize: Bytes of an element on the wire.
        call: What a sum takes each rank beside its messages, nanoseconds by rank; one rank alone
            takes none of it, as it is what two are measured to take beyond one.
    """

    def __init__(self, network: Network, algorithm: str, itemsize: int, call: Ints) -> None:
        if algorithm not in ALGORITHMS:
            raise ConfigError(f"allreduce must be one of {' | '.join(ALGORITHMS)}, got {algorithm}")
        self._network = network
        self._itemsize = itemsize
        self._call = call
        self._workers = np.arange(1, network.size, dtype=np.int64)
        runs: dict[str, _Run] = {
            "star": self._star, "tree": self._tree, "ring": self._ring,
            "direct": partial(self._pairs, whole=False),
            "exchange": partial(self._pairs, whole=True),
        }  # fmt: skip
        self._run = runs[algorithm]
        self._turns = Ring(network)
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
        self._run(now, count)
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

    def _star(self, now: Ints, count: int) -> None:
        """While a piece comes up, the sum of the one before goes down."""
        network, workers, back = self._network, self._workers, None
        for start, stop in chunks(count):
            message = network.message((stop - start) * self._itemsize)
            if back is None:
                network.gather(now, workers, MASTER_RANK, message)
            else:
                # Workers send their piece before they wait for the sum of the one before.
                began = now.copy()
                network.scatter(now, MASTER_RANK, workers, back)
                received = now[workers]
                now[workers] = began[workers]
                network.gather(now, workers, MASTER_RANK, message)
                now[workers] = np.maximum(now[workers], received)
            back = message
        if back is not None:
            network.scatter(now, MASTER_RANK, workers, back)

    def _tree(self, now: Ints, count: int) -> None:
        size = self._network.size
        children = [np.array(make_tree(r, size).children, dtype=np.int64) for r in range(size)]
        inner = [rank for rank in range(size) if len(children[rank])]
        for start, stop in chunks(count):
            message = self._network.message((stop - start) * self._itemsize)
            for rank in reversed(inner):
                self._network.gather(now, children[rank], rank, message)
            for rank in inner:
                self._network.scatter(now, rank, children[rank], message)

    def _ring(self, now: Ints, count: int) -> None:
        size = self._network.size
        for start, stop in chunks(count):
            parts = slices(start, stop, size)
            counts = np.array([b - a for a, b in parts], dtype=np.int64)
            self._turns.all_reduce(now, counts * self._itemsize)

    def _pairs(self, now: Ints, count: int, *, whole: bool) -> None:
        size = self._network.size
        for start, stop in chunks(count):
            if whole:
                each = np.full((size, size), (stop - start) * self._itemsize)
                swap(self._network, now, each, adds=True)
                continue
            counts = np.array([b - a for a, b in slices(start, stop, size)]) * self._itemsize
            swap(self._network, now, np.broadcast_to(counts, (size, size)), adds=True)
            swap(self._network, now, np.broadcast_to(counts[:, None], (size, size)), adds=False)
