"""How a long vector is cut into pieces, and a piece into a slice for every rank. Pure."""

from collections.abc import Iterator
from itertools import pairwise

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
