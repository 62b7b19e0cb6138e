import pytest

from testbed.sim.rank_plans import plan_ranks
from tests.testbed.sim.sims import make_run, tiny
from tpi.errors import ResourceError
from tpi.options import ComputeOptions
from tpi.planner.memory import block_bytes, choose_window
from tpi.weights.shard import make_shard_plan


@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("shares", [None, "uneven"])
def test_sizes_and_windows_are_those_of_the_real_shards(size, shares):
    weights = None if shares is None else tuple(float(r) for r in range(size - 1, -1, -1))
    if weights == (0.0,):
        weights = (1.0,)
    run = make_run(size=size, options={"window": 2, "shares": weights})
    plan, ranks = plan_ranks(run)
    real = make_shard_plan(run.model, size, weights)
    assert plan == real
    for rank, ours in enumerate(ranks):
        blocks = block_bytes(run.model, real, rank, "float32")
        held = {b: n for b, n in blocks if b.kind != "embed"}
        assert [n for b, n in held.items() if b.kind == "head"] == list(ours.head)
        assert {n for b, n in held.items() if b.kind == "attn"} <= {ours.attn}
        assert {n for b, n in held.items() if b.kind == "ffn"} <= {ours.ffn}
        assert ours.choice == choose_window(
            run.model, real, rank, blocks, ComputeOptions(window=2, max_tokens=12)
        )


def test_what_is_retained_is_not_streamed():
    budget = 290_000_000
    _, (rank,) = plan_ranks(make_run(size=1, storage="bfloat16", options={"memory_budget": budget}))
    assert rank.choice.retained
    assert not any(rank.streams(block) for block in rank.choice.retained)


def test_a_budget_that_cannot_work_is_refused_as_by_the_real_program():
    with pytest.raises(ResourceError, match="rank 0: memory budget"):
        plan_ranks(make_run(options={"memory_budget": 1 << 20}))


def test_the_tiny_model_has_what_these_tests_need():
    assert tiny().num_layers == 8
