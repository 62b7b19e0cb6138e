from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tpi.planner.propositions import (
    LayerTimes,
    ours_tight_steady_state,
    published_tight_steady_state,
)
from tpi.planner.window_replay import BlockTimes, StepTimes, predict_step

LAYERS = 32
# Section 3.3: Llama 2-7B on four laptops, a quarter each.
PAPER = LayerTimes(
    attn_s=0.011, ffn_s=0.017, allreduce_s=0.014, attn_load_s=0.018, ffn_load_s=0.030
)
TIMES = st.integers(1, 100).map(float)  # sums of whole numbers are exact
ANY_TIMES = st.builds(LayerTimes, TIMES, TIMES, TIMES, TIMES, TIMES)


def layers(times: LayerTimes, num_layers: int) -> list[BlockTimes]:
    one = [
        BlockTimes(times.attn_s, times.allreduce_s, times.attn_load_s),
        BlockTimes(times.ffn_s, times.allreduce_s, times.ffn_load_s),
    ]
    return one * num_layers


def by_events(blocks: list[BlockTimes], window: int, cycles: int) -> float:
    """The window's rule, written down a second time: when the last block of all ends."""
    streamed = [i for i, b in enumerate(blocks) if b.load_s is not None]
    loaded: dict[tuple[int, int], float] = {}
    released: dict[tuple[int, int], float] = {}
    order = [(c, i) for c in range(cycles) for i in streamed]
    end = 0.0
    for c in range(cycles):
        for i, block in enumerate(blocks):
            start = end
            if block.load_s is not None:
                k = order.index((c, i))
                before = loaded[order[k - 1]] if k else 0.0
                room = released[order[k - window]] if k >= window else 0.0
                loaded[c, i] = max(before, room) + block.load_s
                start = max(end, loaded[c, i])
            released[c, i] = start + block.compute_s
            end = released[c, i] + block.after_s
    return end


LOADS = st.one_of(st.none(), st.floats(0.0, 1.0))
ANY_BLOCK = st.builds(BlockTimes, st.floats(0.0, 1.0), st.floats(0.0, 1.0), LOADS)


@settings(max_examples=60, deadline=None)
@given(blocks=st.lists(ANY_BLOCK, min_size=3, max_size=8), window=st.integers(1, 4))
def test_replay_agrees_with_the_windows_rule_written_twice(blocks, window):
    step = predict_step(blocks, window)
    if window < sum(b.load_s is not None for b in blocks):
        assert step.first_s == pytest.approx(by_events(blocks, window, 1))
        last = by_events(blocks, window, 4) - by_events(blocks, window, 3)
        assert step.step_s == pytest.approx(last, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(blocks=st.lists(ANY_BLOCK, min_size=1, max_size=8))
def test_a_larger_window_is_never_slower_and_never_beats_the_bound(blocks):
    steps = [predict_step(blocks, window) for window in (1, 2, 3, None)]
    total = sum(b.compute_s + b.after_s for b in blocks)
    for smaller, larger in pairwise(steps):
        assert larger.first_s <= smaller.first_s + 1e-9
    for step in steps:
        assert step.step_s == pytest.approx(total + step.stall_s, abs=1e-9)


def test_papers_example_is_steady_with_window_2_since_space_is_free_before_the_allreduce():
    assert ours_tight_steady_state(PAPER)
    step = predict_step(layers(PAPER, LAYERS), 2)
    assert step.is_steady
    assert step.first_s == pytest.approx(step.step_s + 0.018 + 0.005)
    assert not predict_step(layers(PAPER, LAYERS), 1).is_steady


@settings(max_examples=300, deadline=None)
@given(times=ANY_TIMES)
def test_our_tight_condition_is_what_the_replay_of_window_2_says(times):
    stall_s = predict_step(layers(times, 60), 2).stall_s
    if ours_tight_steady_state(times):
        assert stall_s < 1e-9
    else:
        assert stall_s > 0
    if published_tight_steady_state(times):
        assert ours_tight_steady_state(times)


def test_window_of_one_loads_between_blocks():
    one = LayerTimes(attn_s=1, ffn_s=2, allreduce_s=0.5, attn_load_s=4, ffn_load_s=8)
    step = predict_step(layers(one, 3), 1)
    # Every load begins when the block before is released, so it hides only its allreduce.
    assert step.stall_s == pytest.approx(3 * (4 - 0.5 + 8 - 0.5))


def test_disk_bound_step_takes_as_long_as_reading():
    slow = LayerTimes(attn_s=0.1, ffn_s=0.2, allreduce_s=0, attn_load_s=4, ffn_load_s=8)
    step = predict_step(layers(slow, 4), 2)
    assert step.step_s == pytest.approx(48)


def test_retained_blocks_are_not_loaded():
    kept = [BlockTimes(1, 0, None), BlockTimes(1, 0, 2), BlockTimes(1, 0, 2), BlockTimes(1, 0, 2)]
    step = predict_step(kept, 2)
    assert step.step_s == pytest.approx(6)
    assert predict_step(kept, 3) == StepTimes(4, 4, 0)  # a window over all streams nothing
