import mmap

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tpi.errors import ResourceError
from tpi.weights.arena import Arena, ArenaPlan, least_arena_bytes, place

PAGE = 4096
FEW = st.lists(st.integers(1, 12), min_size=1, max_size=9)


def overlaps(plan: ArenaPlan, sizes: list[int], window: int, cycles: int) -> list[tuple[int, int]]:
    """Pairs of positions that are resident together and share a byte."""
    count = len(sizes)
    bad: list[tuple[int, int]] = []
    for position in range(count * cycles):
        start, size = plan.offset(position), sizes[position % count]
        assert start >= 0
        assert start + size <= plan.arena_bytes
        for earlier in range(max(0, position - window + 1), position):
            other, length = plan.offset(earlier), sizes[earlier % count]
            if start < other + length and other < start + size:
                bad.append((earlier, position))
    return bad


@settings(max_examples=150, deadline=None)
@given(pages=FEW, window=st.integers(1, 10), cycles=st.integers(1, 12))
def test_place_never_lets_resident_blocks_overlap(pages, window, cycles):
    sizes = [p * PAGE for p in pages]
    plan = place(sizes, window)
    assert overlaps(plan, sizes, min(window, len(sizes)), cycles) == []


@settings(max_examples=100, deadline=None)
@given(pages=FEW, window=st.integers(1, 10))
def test_place_keeps_pages_aligned_and_needs_at_most_one_block_more_than_the_least(pages, window):
    sizes = [p * PAGE for p in pages]
    plan = place(sizes, window)
    least = least_arena_bytes(sizes, window)
    assert least <= plan.arena_bytes <= least + max(sizes)
    assert all(offset % PAGE == 0 for offset in plan.offsets)
    if window <= 2:
        assert plan.arena_bytes == least


@pytest.mark.parametrize("window", [12, 32])
def test_place_of_a_large_window_is_a_ring_without_overlap(window):
    sizes = [3 * PAGE, 7 * PAGE] * 20 + [2 * PAGE] * 5
    plan = place(sizes, window)
    assert overlaps(plan, sizes, window, 5) == []
    assert plan.arena_bytes == least_arena_bytes(sizes, window) + 7 * PAGE


@pytest.mark.parametrize(
    ("sizes", "window", "expected"),
    [
        ([64, 129], 1, 129),
        ([64, 129, 64, 129], 2, 193),
        ([64, 129, 64, 129, 60, 60, 60], 2, 193),  # odd: the same block lies now low, now high
        ([64, 129] * 8, 4, 386),
        ([5, 6, 7], 3, 18),
        ([5, 6, 7], 9, 18),
        ([], 2, 0),
    ],
)
def test_place_arena_is_the_largest_sum_of_a_window(sizes, window, expected):
    assert place(sizes, window).arena_bytes == expected


def test_place_puts_all_blocks_of_an_odd_cycle_somewhere_for_ever():
    plan = place([10, 20, 30], 2)
    assert [plan.offset(p) for p in range(3)] == [0, 30, 0]
    assert [plan.offset(p) for p in range(3, 6)] == [40, 0, 20]
    assert plan.offset(6) == plan.offset(0)
    assert plan.offset(6 * 10**9 + 4) == plan.offset(4)


def test_place_refuses_a_window_of_nothing():
    with pytest.raises(ValueError, match="window must be >= 1, got 0"):
        place([1, 2], 0)


def test_arena_views_are_writable_and_page_aligned():
    np = pytest.importorskip("numpy")
    arena = Arena(3 * PAGE)
    view = arena.view(PAGE, PAGE)
    view[:] = b"\x07" * PAGE
    array = np.frombuffer(view, dtype=np.uint8)
    assert array.ctypes.data % mmap.PAGESIZE == 0
    assert array.sum() == 7 * PAGE
    arena.close()  # a view is still out: no error, and what it shows stays
    assert array[0] == 7
    arena.close()


def test_arena_of_nothing_can_be_made_and_closed():
    arena = Arena(0)
    assert len(arena.view(0, 0)) == 0
    arena.close()


def test_arena_that_does_not_fit_names_the_bytes_and_the_way_out():
    wanted = 1 << 62  # no address space has room for it, whatever the machine
    with pytest.raises(ResourceError, match=rf"{wanted} bytes.*window.*memory_budget"):
        Arena(wanted)
