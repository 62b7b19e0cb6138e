from itertools import pairwise

import pytest

from tpi.comm.allreduces.base import chunks, slices


@pytest.mark.parametrize("world_size", range(1, 6))
@pytest.mark.parametrize("count", [1, 3, 5, 16, 17])
def test_slices_cover_all_evenly(count, world_size):
    parts = slices(100, 100 + count, world_size)
    assert [i for a, b in parts for i in range(a, b)] == list(range(100, 100 + count))
    sizes = [b - a for a, b in parts]
    assert max(sizes) - min(sizes) <= 1


def test_chunks_cover_all():
    pieces = list(chunks(600_001))
    assert pieces[0][0] == 0
    assert pieces[-1][1] == 600_001
    assert all(a[1] == b[0] for a, b in pairwise(pieces))
