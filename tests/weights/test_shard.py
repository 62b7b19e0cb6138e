import math
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.weights.shard_folders import small_config
from tpi.errors import ConfigError
from tpi.model_config import ModelConfig, load_preset
from tpi.weights.shard import (
    BlockId,
    BlockSpec,
    TensorSpec,
    largest_remainder,
    make_shard_plan,
    rank_blocks,
)

WEIGHTS = st.lists(
    st.one_of(st.just(0.0), st.floats(0.0, 1e6), st.sampled_from([1.0, 2.0, 1e-300, 1e300])),
    min_size=1,
    max_size=9,
).filter(any)
CONFIGS = st.builds(
    lambda kv, group, ffn: small_config(num_kv_heads=kv, num_heads=kv * group, ffn_size=ffn),
    st.integers(1, 8), st.integers(1, 5), st.sampled_from([1, 24, 100, 1024, 11008]),
)  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(CONFIGS, WEIGHTS)
def test_shares_divide_heads_and_columns_exactly(config, weights):
    plan = make_shard_plan(config, len(weights), weights)
    assert plan == make_shard_plan(config, len(weights), weights)
    q = [(s.q_start, s.q_stop) for s in plan.shares]
    ffn = [(s.ffn_start, s.ffn_stop) for s in plan.shares]
    for ranges, total in ((q, config.num_heads), (ffn, config.ffn_size)):
        assert ranges[0][0] == 0
        assert ranges[-1][1] == total
        assert all(a[1] == b[0] for a, b in pairwise(ranges))
        assert all(start <= stop for start, stop in ranges)
    for share, weight in zip(plan.shares, weights, strict=True):
        if not weight:
            assert (share.local_num_heads, share.local_num_kv_heads, share.local_ffn_size) == (
                0, 0, 0,
            )  # fmt: skip
        kv_used = {q // config.q_per_kv for q in range(share.q_start, share.q_stop)}
        assert kv_used == set(range(share.kv_start, share.kv_stop))
        local = share.local_kv_of_q(config)
        assert len(local) == share.local_num_heads
        assert set(local) == set(range(share.local_num_kv_heads))


@settings(max_examples=80, deadline=None)
@given(CONFIGS, WEIGHTS)
def test_kv_heads_are_replicated_only_where_ranks_outnumber_them(config, weights):
    plan = make_shard_plan(config, len(weights), weights)
    held = sum(s.local_num_kv_heads for s in plan.shares)
    if sum(w > 0 for w in weights) <= config.num_kv_heads:
        assert held == config.num_kv_heads
    else:
        assert held >= config.num_kv_heads


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10_000), WEIGHTS)
def test_largest_remainder_is_within_one_of_the_exact_share(total, weights):
    counts = largest_remainder(total, weights)
    assert sum(counts) == total
    largest = max(weights)
    scaled = [w / largest for w in weights]  # the sum of the weights themselves may overflow
    for count, weight in zip(counts, scaled, strict=True):
        assert abs(count - total * weight / math.fsum(scaled)) < 1 + 1e-6 * total


@pytest.mark.parametrize(
    ("world_size", "weights", "heads", "kv"),
    [
        (1, None, [8], [2]),
        (2, None, [4, 4], [1, 1]),
        (2, [3, 1], [8, 0], [2, 0]),  # 1.5 groups against 0.5: a tie goes to the lower rank
        (3, None, [3, 3, 2], [1, 2, 1]),  # heads 0-2, 3-5, 6-7; group 0 is heads 0-3
        (3, [2, 1, 1], [4, 2, 2], [1, 1, 1]),
        (3, [1, 0, 1], [4, 0, 4], [1, 0, 1]),  # two with a share: whole groups
        (4, None, [2, 2, 2, 2], [1, 1, 1, 1]),
        (10, None, [1] * 8 + [0, 0], [1] * 8 + [0, 0]),
    ],
)
def test_heads_of_two_kv_groups(world_size, weights, heads, kv):
    plan = make_shard_plan(small_config(num_heads=8, num_kv_heads=2), world_size, weights)
    assert [s.local_num_heads for s in plan.shares] == heads
    assert [s.local_num_kv_heads for s in plan.shares] == kv


def test_each_query_head_finds_its_own_kv_head_where_a_rank_spans_two():
    config = small_config(num_heads=8, num_kv_heads=2)
    share = make_shard_plan(config, 3).shares[1]  # heads 3, 4, 5
    assert share.local_kv_of_q(config) == (0, 1, 1)


def test_columns_are_cut_at_cache_lines_where_there_are_many():
    plan = make_shard_plan(load_preset("llama2-7b"), 3)
    assert [s.ffn_stop % 32 for s in plan.shares] == [0, 0, 0]
    assert [s.local_ffn_size for s in plan.shares] == [3680, 3680, 3648]
    small = make_shard_plan(small_config(ffn_size=24), 3, [2, 1, 1])
    assert [s.local_ffn_size for s in small.shares] == [12, 6, 6]


@pytest.mark.parametrize(
    ("world_size", "weights"),
    [
        (0, None), (-1, None), (10**9, None), (2, [1.0]), (2, [0.0, 0.0]), (2, [1.0, -1.0]),
        (2, [1.0, float("nan")]), (2, [1.0, float("inf")]), (0, []),
    ],
)  # fmt: skip
def test_impossible_shares_are_refused(world_size, weights):
    with pytest.raises(ConfigError, match=r"(devices|shares): expected .* got"):
        make_shard_plan(small_config(), world_size, weights)


def test_digest_tells_plans_apart():
    config = small_config()
    digests = {
        make_shard_plan(config, n, weights).digest()
        for n, weights in ((1, None), (2, None), (2, [2, 1]), (2, [0.5, 0.5]))
    }
    assert len(digests) == 4
    assert make_shard_plan(config, 2).digest() == make_shard_plan(config, 2, [1, 1]).digest()


def blocks_of(
    config: ModelConfig, world_size: int, weights: Sequence[float] | None = None
) -> list[tuple[BlockSpec, ...]]:
    plan = make_shard_plan(config, world_size, weights)
    return [rank_blocks(config, plan, rank, "float32") for rank in range(world_size)]


def names(block: BlockSpec) -> list[str]:
    return [tensor.name for tensor in block.tensors]


def test_order_of_blocks():
    master, worker = blocks_of(small_config(), 2)
    layers = [BlockId("attn", 0), BlockId("ffn", 0), BlockId("attn", 1), BlockId("ffn", 1)]
    ids = [block.id for block in master]
    assert ids[:5] == [BlockId("embed", 0), *layers]
    assert ids[5:] == [BlockId("head", i) for i in range(len(ids) - 5)]
    assert [block.id for block in worker] == layers


def test_file_names():
    assert BlockId("embed", 0).file_name == "embed.safetensors"
    assert BlockId("attn", 3).file_name == "attn-003.safetensors"
    assert BlockId("head", 1234).file_name == "head-1234.safetensors"


def test_rank_without_heads_or_columns_has_no_such_blocks():
    master, worker, idle = blocks_of(small_config(), 3, [0, 1, 0])
    assert {block.id.kind for block in master} == {"embed", "head"}
    assert {block.id.kind for block in worker} == {"attn", "ffn"}
    assert idle == ()
    config = small_config(num_heads=2, num_kv_heads=2, head_size=8)
    assert {b.id.kind for b in blocks_of(config, 3)[2]} == {"ffn"}


def test_biases_that_are_summed_are_on_one_rank():
    config = small_config(qkv_bias=True, out_bias=True, ffn_bias=True)
    for weights in ([1, 1, 1], [0, 1, 1]):
        for rank, blocks in enumerate(blocks_of(config, 3, weights)):
            for block in blocks:
                first = rank == weights.index(1)
                if block.id.kind == "attn":
                    assert ("o_bias" in names(block)) == first
                    assert {"q_bias", "k_bias", "v_bias"} <= set(names(block))
                if block.id.kind == "ffn":
                    assert ("down_bias" in names(block)) == first
                    assert {"gate_bias", "up_bias"} <= set(names(block))


def test_qk_norms_are_whole_on_every_rank():
    for blocks in blocks_of(small_config(qk_norm=True), 2):
        attn = next(b for b in blocks if b.id.kind == "attn")
        assert [t.shape for t in attn.tensors if t.name in ("q_norm", "k_norm")] == [(4,), (4,)]


def test_tied_head_is_cut_from_the_embedding():
    for tied, source in ((True, "model.embed_tokens.weight"), (False, "lm_head.weight")):
        tiles = [
            b for b in blocks_of(small_config(tied_embeddings=tied), 1)[0] if b.id.kind == "head"
        ]
        assert {b.tensors[-1].source.name for b in tiles} == {source}


def _cells(tensor: TensorSpec) -> set[tuple[int, int]]:
    rows, cols = tensor.source.rows, tensor.source.cols or (0, 1)
    return {(r, c) for r in range(*rows) for c in range(*cols)}


@settings(max_examples=25, deadline=None)
@given(
    st.builds(
        lambda kv, group, bias: small_config(
            num_kv_heads=kv, num_heads=kv * group, hidden_size=6, head_size=2, ffn_size=13,
            qkv_bias=bias, out_bias=bias, ffn_bias=bias, num_layers=1,
        ),
        st.integers(1, 4), st.integers(1, 3), st.booleans(),
    ),
    WEIGHTS,
)  # fmt: skip
def test_slices_of_all_ranks_cover_every_tensor_of_the_checkpoint(config, weights):
    seen: dict[str, list[set[tuple[int, int]]]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for blocks in blocks_of(config, len(weights), weights):
        for tensor in (t for block in blocks for t in block.tensors):
            spans = (tensor.source.rows, tensor.source.cols)
            assert tensor.shape == tuple(b - a for a, b in (s for s in spans if s is not None))
            seen.setdefault(tensor.source.name, []).append(_cells(tensor))
            assert shapes.setdefault(tensor.source.name, tensor.source.shape) == tensor.source.shape
    assert len(seen) == 12 + 7 * config.qkv_bias
    for name, cells in seen.items():
        shape = (*shapes[name], 1)[:2]
        assert set.union(*cells) == {(r, c) for r in range(shape[0]) for c in range(shape[1])}
        if name.endswith(("q_proj.weight", "o_proj.weight", "o_proj.bias", "gate_proj.weight",
                          "up_proj.weight", "down_proj.weight", "down_proj.bias",
                          "lm_head.weight")):  # fmt: skip
            assert sum(map(len, cells)) == len(set.union(*cells)), f"{name} is held twice"


@pytest.mark.parametrize("name", ["llama2-7b", "llama2-70b", "llama3.1-8b", "yi-34b", "tiny"])
@pytest.mark.parametrize(
    ("world_size", "weights"), [(1, None), (8, None), (3, [1, 2, 5]), (12, None)]
)
def test_head_tiles_do_not_enlarge_the_window(name, world_size, weights):
    config = load_preset(name)
    plan = make_shard_plan(config, world_size, weights)
    blocks = rank_blocks(config, plan, 0, "bfloat16")
    num_bytes = {b.id: b.layout().num_bytes for b in blocks}
    tiles = [b for b in blocks if b.id.kind == "head"]
    limit = min(
        max(n for block, n in num_bytes.items() if block.kind == kind) for kind in ("attn", "ffn")
    )
    assert max(num_bytes[b.id] for b in tiles) <= limit
    assert tiles[0].tensors[0].name == "norm"
    bounds = [tile.tensors[-1].source.rows for tile in tiles]
    assert all(start < stop for start, stop in bounds)
    assert all(a[1] == b[0] for a, b in pairwise(bounds))
    assert (bounds[0][0], bounds[-1][1]) == (0, config.vocab_size)


def test_head_tiles_of_a_master_without_layers_are_at_most_32_mib():
    config = load_preset("llama2-7b")
    blocks = rank_blocks(config, make_shard_plan(config, 2, [0, 1]), 0, "bfloat16")
    tiles = [b.layout().num_bytes for b in blocks if b.id.kind == "head"]
    assert 16 << 20 < max(tiles) <= 32 << 20
