import itertools
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baselines.pipeline.stages import (
    holds,
    make_stages,
    problems,
    stage_bytes,
    stage_peaks,
)
from tests.baselines.pipeline.closed_form import traffic
from tests.weights.shard_folders import small_config
from tpi.errors import ConfigError
from tpi.model_config import load_preset
from tpi.options import ComputeOptions
from tpi.planner.memory import PROCESS_BYTES, block_bytes
from tpi.weights.shard import BlockId, make_shard_plan

SHARES = st.one_of(st.none(), st.lists(st.sampled_from([0.1, 1, 2, 3, 7.5, 100]), min_size=9))


def fullest(model, stages, shares, storage):
    return max(
        stage_bytes(model, rank, stage, storage) / Fraction(shares[rank] if shares else 1)
        for rank, stage in enumerate(stages)
    )


def all_stages(num_layers, world_size):
    """Every way to cut the layers into ranges that are not empty."""
    for cuts in itertools.combinations(range(1, num_layers), world_size - 1):
        bounds = (0, *cuts, num_layers)
        yield tuple(map(range, bounds, bounds[1:]))


@settings(max_examples=60, deadline=None)
@given(
    num_layers=st.integers(1, 8), world_size=st.integers(1, 5), shares=SHARES,
    vocab=st.sampled_from([10, 400, 20_000]), tied=st.booleans(),
    storage=st.sampled_from(["float32", "bfloat16"]),
)  # fmt: skip
def test_no_cut_leaves_the_fullest_device_emptier(
    num_layers, world_size, shares, vocab, tied, storage
):
    world_size = min(num_layers, world_size)
    shares = shares and shares[:world_size]
    model = small_config(num_layers=num_layers, vocab_size=vocab, tied_embeddings=tied)
    stages = make_stages(model, world_size, shares, storage)
    assert [layer for stage in stages for layer in stage] == list(range(num_layers))
    assert all(stages)
    best = min(fullest(model, s, shares, storage) for s in all_stages(num_layers, world_size))
    assert fullest(model, stages, shares, storage) == best


def test_layers_follow_the_memories_and_the_head_counts():
    model = load_preset("llama2-7b")
    assert [len(s) for s in make_stages(model, 4, None, "float16")] == [8, 8, 8, 8]
    assert [len(s) for s in make_stages(model, 4, [1, 1, 2, 4], "float16")] == [3, 4, 8, 17]
    # A vocabulary as large as eight layers leaves the master that many fewer.
    wide = small_config(num_layers=32, vocab_size=8 * 40)
    first, second = make_stages(wide, 2, None, "float32")
    assert len(second) - len(first) >= 2


def test_bytes_of_all_stages_are_the_files_without_the_embedding():
    for model in (small_config(num_layers=5), small_config(num_layers=5, tied_embeddings=True)):
        blocks = block_bytes(model, make_shard_plan(model, 1), 0, "float32")
        stages = make_stages(model, 3, None, "float32")
        total = sum(stage_bytes(model, r, s, "float32") for r, s in enumerate(stages))
        assert total == sum(n for block, n in blocks if block.kind != "embed")
        for block, _ in blocks:  # every block has one rank
            assert sum(holds(rank, stage, block) for rank, stage in enumerate(stages)) == 1
        assert holds(0, stages[0], BlockId("embed", 0))


def test_more_devices_than_layers_are_refused_by_number():
    model = small_config(num_layers=3)
    with pytest.raises(ConfigError, match="4 devices, but the model has 3 layers"):
        make_stages(model, 4, None, "float32")
    assert len(problems(model, 4)) == 1
    assert problems(model, 3) == []


@pytest.mark.parametrize("shares", [[1], [1, 0], [1, -1], [1, float("nan")], [1, float("inf")]])
def test_shares_that_make_no_pipeline_are_refused(shares):
    with pytest.raises(ConfigError, match="shares"):
        make_stages(small_config(), 2, shares, "float32")


def test_peaks_count_own_layers_and_the_head_on_the_master_only():
    model = load_preset("llama2-7b")
    options = ComputeOptions(dtype="bfloat16", max_tokens=100, prefill_chunk=64)
    first, second = stage_peaks(model, 2, None, "bfloat16", options)
    (alone,) = stage_peaks(model, 1, None, "bfloat16", options)
    weights = [stage_bytes(model, r, range(16), "bfloat16") for r in range(2)]
    # The cache of 16 layers and some activations on both, logits on the master.
    rest = [first - weights[0] - PROCESS_BYTES, second - weights[1] - PROCESS_BYTES]
    cache = 2 * 16 * 100 * 4096 * 2
    assert rest[0] - rest[1] == 3 * 4 * 32000
    assert cache < rest[1] < cache + 64 * (16 * 4096 + 2 * 4 * 11008) + (2 << 20)
    assert alone > max(first, second)


def test_traffic_is_one_message_a_rank():
    assert traffic(0, 1, 7, 16) == (0, 0)
    assert traffic(0, 3, 7, 16) == traffic(1, 3, 7, 16) == (1, 80 + 4 * 7 * 16)
    assert traffic(2, 3, 7, 16) == traffic(2, 3, 1, 16) == (1, 80 + 4 * 16)
