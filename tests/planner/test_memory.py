from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tpi.errors import ResourceError
from tpi.model_config import load_preset
from tpi.planner.memory import (
    StepShape,
    block_bytes,
    choose_window,
    memory_parts,
    plan_memory,
    spread,
)
from tpi.weights.arena import place
from tpi.weights.shard import BlockId, make_shard_plan

MIB = 1 << 20
PAGE = 4096


def block_list(
    num_layers: int, attn: int, ffn: int, num_tiles: int, tile: int
) -> tuple[tuple[BlockId, int], ...]:
    blocks = []
    for layer in range(num_layers):
        blocks += [(BlockId("attn", layer), attn), (BlockId("ffn", layer), ffn)]
    return (*blocks, *((BlockId("head", i), tile) for i in range(num_tiles)))


LLAMA = block_list(8, 64, 129, 3, 60)  # 8 * 193 + 180 = 1724
SMALL = st.integers(1, 20).map(lambda pages: pages * PAGE)
ANY_LIST = st.builds(
    block_list, st.integers(1, 7), SMALL, SMALL, st.integers(0, 4), st.integers(1, 4)
)


@settings(max_examples=200, deadline=None)
@given(blocks=ANY_LIST, share=st.floats(0, 1.2), fixed=st.integers(0, 10**6))
def test_a_budget_is_kept_to_the_byte_and_every_block_is_accounted_for(blocks, share, fixed):
    total = sum(size for _, size in blocks)
    budget = fixed + int(share * total)
    largest = max(size for _, size in blocks)
    if budget < fixed + largest:
        with pytest.raises(ResourceError, match=f"the least that works is {fixed + largest} bytes"):
            plan_memory(blocks, window=2, memory_budget=budget, fixed_bytes=fixed)
        budget = fixed + largest
    choice = plan_memory(blocks, window=2, memory_budget=budget, fixed_bytes=fixed)
    assert choice.peak_bytes <= budget
    assert choice.peak_bytes == fixed + choice.arena_bytes + choice.retained_bytes
    streamed = [size for block, size in blocks if block not in choice.retained]
    assert choice.retained_bytes == total - sum(streamed)
    if choice.window is None:
        assert choice.streamed_bytes_per_pass == 0
    else:
        assert choice.streamed_bytes_per_pass == sum(streamed)
        assert choice.arena_bytes == place(streamed, choice.window).arena_bytes


@pytest.mark.parametrize(
    ("window", "expected", "arena"),
    [(1, 1, 129), (2, 2, 193), (4, 4, None), (18, 18, None), (19, None, 1724), (None, None, 1724)],
)
def test_without_a_budget_the_window_is_what_was_asked_for(window, expected, arena):
    choice = plan_memory(LLAMA, window=window, memory_budget=None, fixed_bytes=7)
    assert choice.window == expected
    assert choice.retained == frozenset()
    assert arena is None or choice.arena_bytes == arena
    assert choice.streamed_bytes_per_pass == (1724 if expected else 0)


@pytest.mark.parametrize(
    ("budget", "window", "kept"),
    [
        (1724, None, {}),
        (193, 2, {}),
        (192, 1, {"head": 1}),
        (129, 1, {}),
        (193 + 129, 2, {"ffn": 1}),
        (193 + 4 * 129 + 63, 2, {"ffn": 4, "head": 1}),
        (193 + 4 * 129 + 64, 2, {"ffn": 4, "attn": 1}),
        (1723, 2, {"ffn": 8, "attn": 8}),
    ],
)
def test_a_budget_buys_loading_ahead_first_then_ffn_blocks_then_what_fits(budget, window, kept):
    choice = plan_memory(LLAMA, window=2, memory_budget=budget, fixed_bytes=0)
    counts: dict[str, int] = {}
    for block in choice.retained:
        counts[block.kind] = counts.get(block.kind, 0) + 1
    assert (choice.window, counts) == (window, kept)


def test_retained_ffn_blocks_are_every_tth_as_in_prop_6():
    choice = plan_memory(LLAMA, window=2, memory_budget=193 + 4 * 129, fixed_bytes=0)
    assert choice.retained == {BlockId("ffn", i) for i in (0, 2, 4, 6)}


@settings(deadline=None)
@given(total=st.integers(1, 60), data=st.data())
def test_spread_is_even_and_begins_with_the_first(total, data):
    count = data.draw(st.integers(0, total))
    blocks = [BlockId("ffn", i) for i in range(total)]
    kept = sorted(b.index for b in spread(blocks, count))
    assert len(kept) == count
    if count:
        assert kept[0] == 0
        gaps = [b - a for a, b in zip(kept, [*kept[1:], kept[0] + total], strict=True)]
        assert max(gaps) - min(gaps) <= 1


def test_a_rank_that_holds_nothing_needs_its_process_only():
    choice = plan_memory((), window=2, memory_budget=5, fixed_bytes=5)
    assert (choice.window, choice.peak_bytes) == (None, 5)


def test_parts_grow_with_what_causes_them_and_only_the_master_has_logits():
    config = load_preset("llama2-7b")
    plan = make_shard_plan(config, 8)
    parts = memory_parts(config, plan, 1, StepShape(1, 64, 32))
    # 32 layers, keys and values of 4 of 32 heads of 128, 64 positions, float32.
    assert parts.kv_cache == 2 * 32 * 64 * 4 * 128 * 4
    assert parts.logits == 0
    assert memory_parts(config, plan, 0, StepShape(1, 64, 32)).logits == 3 * 4 * 32000
    longer = memory_parts(config, plan, 1, StepShape(2, 1024, 512))
    assert longer.kv_cache == 2 * 16 * parts.kv_cache
    assert longer.activations == 2 * 16 * parts.activations
    half = memory_parts(config, plan, 1, StepShape(1, 64, 32, dtype="bfloat16"))
    assert half.kv_cache == parts.kv_cache // 2


def test_comm_buffers_are_chunks_and_the_star_has_most_on_the_master():
    config = load_preset("llama2-70b")
    plan = make_shard_plan(config, 8)
    shape = StepShape(1, 512, 512)
    assert memory_parts(config, plan, 0, shape).comm == 8 * MIB  # a chunk a worker and one more
    assert memory_parts(config, plan, 1, shape).comm == 2 * MIB
    exchange = replace(shape, allreduce="exchange")
    assert memory_parts(config, plan, 1, exchange).comm == 8 * MIB
    alone = make_shard_plan(config, 1)
    assert memory_parts(config, alone, 0, shape).comm == 0


def test_70b_on_8_devices_stays_below_600_mib_on_every_one():
    config = load_preset("llama2-70b")
    plan = make_shard_plan(config, 8)
    for rank in range(8):
        choice = choose_window(
            config, plan, rank, blocks=block_bytes(config, plan, rank, "bfloat16"),
            dtype="float32", max_batch=1, max_tokens=64, step_tokens=64, window=2,
            memory_budget=None,
        )  # fmt: skip
        assert choice.peak_bytes < 0.6 * (1 << 30)
        assert choice.arena_bytes < 205 * MIB  # one attention and one FFN block; no embedding


def test_refused_budget_names_the_rank():
    config = load_preset("llama2-70b")
    plan = make_shard_plan(config, 8)
    with pytest.raises(ResourceError, match="rank 3: memory budget of 256 MiB is too small"):
        choose_window(
            config, plan, 3, blocks=block_bytes(config, plan, 3, "bfloat16"),
            dtype="float32", max_batch=1, max_tokens=64, step_tokens=64, window=2,
            memory_budget=256 * MIB,
        )  # fmt: skip
