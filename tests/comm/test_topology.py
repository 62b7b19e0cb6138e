from itertools import pairwise

import pytest

from tpi.comm.topology import arity, chunks, make_tree, slices, traffic


@pytest.mark.parametrize("world_size", range(1, 70))
def test_tree_reaches_all_in_two_hops(world_size):
    trees = [make_tree(rank, world_size) for rank in range(world_size)]
    for rank, tree in enumerate(trees):
        depth, node = 0, rank
        while node:
            parent = trees[node].parent
            assert parent is not None
            assert node in trees[parent].children
            depth, node = depth + 1, parent
        assert depth <= 2
        assert len(tree.children) <= arity(world_size)
    assert sorted(c for t in trees for c in t.children) == list(range(1, world_size))


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


def test_traffic_of_a_whole_sum_is_what_the_algorithms_promise():
    world_size, count = 8, 8192
    size = 4 * count
    totals = {
        name: [sum(t) for t in zip(*(traffic(name, r, 8, count, 4) for r in range(8)), strict=True)]
        for name in ("star", "tree", "ring", "direct", "exchange")
    }
    n = world_size
    assert totals["star"] == totals["tree"] == [2 * (n - 1), 2 * (n - 1) * (80 + size)]
    scattered = [2 * (n - 1) * n, 2 * (n - 1) * (80 * n + size)]
    assert totals["ring"] == totals["direct"] == scattered
    assert totals["exchange"] == [(n - 1) * n, (n - 1) * n * (80 + size)]
