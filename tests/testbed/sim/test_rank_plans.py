import pytest

from testbed.sim.rank_plans import NodeOptions, plan_ranks
from tests.testbed.sim.sims import make_run, tiny
from tpi.errors import ConfigError, ResourceError
from tpi.planner.memory import block_bytes, choose_window
from tpi.weights.shard import make_shard_plan


@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("shares", [None, "uneven"])
def test_sizes_and_windows_are_those_of_the_real_shards(size, shares):
    weights = None if shares is None else tuple(float(r) for r in range(size - 1, -1, -1))
    if weights == (0.0,):
        weights = (1.0,)
    run = make_run(size=size)
    plan, ranks = plan_ranks(run, NodeOptions(window=2, shares=weights))
    real = make_shard_plan(run.model, size, weights)
    assert plan == real
    for rank, ours in enumerate(ranks):
        blocks = block_bytes(run.model, real, rank, "float32")
        held = {b: n for b, n in blocks if b.kind != "embed"}
        assert [n for b, n in held.items() if b.kind == "head"] == list(ours.head)
        assert {n for b, n in held.items() if b.kind == "attn"} <= {ours.attn}
        assert {n for b, n in held.items() if b.kind == "ffn"} <= {ours.ffn}
        assert ours.choice == choose_window(
            run.model, real, rank, blocks=blocks, dtype="float32", max_batch=1, max_tokens=12,
            step_tokens=12, window=2, memory_budget=None,
        )  # fmt: skip


def test_what_is_retained_is_not_streamed():
    budget = 290_000_000
    _, (rank,) = plan_ranks(make_run(size=1, storage="bfloat16"), NodeOptions(memory_budget=budget))
    assert rank.choice.retained
    assert not any(rank.streams(block) for block in rank.choice.retained)


def test_a_budget_that_cannot_work_is_refused_as_by_the_real_program():
    with pytest.raises(ResourceError, match="rank 0: memory budget"):
        plan_ranks(make_run(), NodeOptions(memory_budget=1 << 20))


def test_options_are_taken_as_the_harness_gives_them():
    raw = {
        "window": "all", "memory_budget": None, "allreduce": "ring", "wire_dtype": "bfloat16",
        "shares": [1, 2], "prefill_chunk": 4,
    }  # fmt: skip
    assert NodeOptions.of(raw) == NodeOptions(None, None, "ring", "bfloat16", (1.0, 2.0), 4)
    assert NodeOptions.of({"window": 3}).window == 3


def test_a_window_that_is_none_is_refused():
    with pytest.raises(ConfigError, match="window: expected a whole number >= 1, got 'two'"):
        NodeOptions.of({"window": "two"})


def test_the_tiny_model_has_what_these_tests_need():
    assert tiny().num_layers == 8
