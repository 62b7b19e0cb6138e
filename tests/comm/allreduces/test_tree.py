import pytest

from tpi.comm.allreduces.tree import arity, make_place


@pytest.mark.parametrize("world_size", range(1, 70))
def test_tree_reaches_all_in_two_hops(world_size):
    places = [make_place(rank, world_size) for rank in range(world_size)]
    for rank, place in enumerate(places):
        depth, node = 0, rank
        while node:
            parent = places[node].parent
            assert parent is not None
            assert node in places[parent].children
            depth, node = depth + 1, parent
        assert depth <= 2
        assert len(place.children) <= arity(world_size)
    assert sorted(c for place in places for c in place.children) == list(range(1, world_size))
