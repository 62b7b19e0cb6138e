"""Who sends what to whom, as plain numbers: no I/O, no torch.

`traffic` is the closed form of what each algorithm puts on the wire; tests hold the counters of
real transfers against it, and the planner may price it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from tpi.comm.wire import HEADER_BYTES

ALGORITHMS = ("star", "tree", "ring", "direct", "exchange")
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


@dataclass(frozen=True, slots=True)
class Tree:
    """The place of a rank in a tree of depth at most 2, as flat as that allows."""

    parent: int | None
    children: tuple[int, ...]


def make_tree(rank: int, world_size: int) -> Tree:
    """Rank r hangs under (r - 1) // k, with the least k for which depth 2 suffices."""
    k = arity(world_size)
    children = range(k * rank + 1, min(k * rank + k + 1, world_size))
    return Tree((rank - 1) // k if rank else None, tuple(children))


def arity(world_size: int) -> int:
    """Children of an inner node of the tree."""
    k = 1
    while 1 + k + k * k < world_size:
        k += 1
    return k


def traffic(
    algorithm: str, rank: int, world_size: int, num_elements: int, itemsize: int
) -> tuple[int, int]:
    """Messages and bytes (headers included) that a rank sends in one allreduce."""
    messages = payload = 0
    for start, stop in chunks(num_elements):
        for size in _sizes(algorithm, rank, world_size, start, stop):
            messages += 1
            payload += size * itemsize
    return messages, messages * HEADER_BYTES + payload


def _sizes(algorithm: str, rank: int, world_size: int, start: int, stop: int) -> list[int]:
    """Elements of each message that a rank sends for one chunk."""
    whole = stop - start
    parts = [b - a for a, b in slices(start, stop, world_size)]
    if algorithm == "star":
        return [whole] * ((world_size - 1) if rank == 0 else 1) if world_size > 1 else []
    if algorithm == "tree":
        tree = make_tree(rank, world_size)
        return [whole] * (len(tree.children) + (tree.parent is not None))
    if algorithm == "exchange":
        return [whole] * (world_size - 1)
    if algorithm == "direct":
        others = [size for r, size in enumerate(parts) if r != rank]
        sent = others + [parts[rank]] * (world_size - 1)
    else:
        reduce_scatter = [parts[(rank - i) % world_size] for i in range(world_size - 1)]
        sent = reduce_scatter + [parts[(rank + 1 - i) % world_size] for i in range(world_size - 1)]
    return [size for size in sent if size]
