"""The pipeline's tokens are Transformers'; over memory channels, and a few with real processes."""

import signal

import pytest
import torch
from msgspec.structs import replace

from baselines.pipeline.engine import NoReduce, open_pipeline, own_blocks, setup
from baselines.pipeline.stages import make_stages
from tests.baselines.distributed import check_bounded, check_logits, run_request, splitter
from tests.baselines.pipeline.closed_form import traffic
from tests.checkpoints import NEW_TOKENS, PROMPT_IDS, reference_tokens
from tests.cluster import cluster_options, run_engines
from tests.nodes import Nodes, make_specs, split_checkpoint
from tpi.comm.wire import Op
from tpi.errors import ConfigError, NumericsError
from tpi.program.spec import Request
from tpi.ranks import Ranks
from tpi.weights.blockfile import open_shard_folder

KINDS = ("mha", "gqa2", "tied", "llama3_rope", "bias", "llama_bias", "qk_norm", "odd")


@pytest.fixture(scope="module")
def split_once():
    with splitter(num_layers=5) as make:
        yield make


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def run_pipeline(shards, prompt, new_tokens, *, world_size, shares=None, requests=1, **options):
    whole = open_shard_folder(shards / "rank-0", verify=False)
    stages = make_stages(whole.config, world_size, shares, whole.dtype)
    settings = cluster_options(prompt, new_tokens, window=None, **options)

    def open_rank(rank, mesh, tracer):
        own = own_blocks(whole, rank, stages[rank])
        return open_pipeline(own, mesh, settings, tracer, stage=stages[rank])

    return run_engines(world_size, open_rank, prompt, new_tokens, requests=requests)


@pytest.mark.parametrize(
    ("kind", "world_size"),
    [*((kind, 2 + index % 2) for index, kind in enumerate(KINDS)), ("gqa2", 1), ("gqa2", 4)],
)
def test_tokens_and_logits_are_those_of_transformers(split_once, kind, world_size):
    folder, shards = split_once(kind, 1)
    result = run_pipeline(shards, list(PROMPT_IDS), NEW_TOKENS, world_size=world_size)
    assert result.row() == list(reference_tokens(folder))
    check_logits(result, folder)


@pytest.mark.parametrize("shares", [(3, 1), (1, 9), (1, 1, 5), (5, 1, 1, 2)], ids=str)
@pytest.mark.parametrize("chunk", [1, 3, 7, 24])
def test_uneven_shares_and_chunks_change_nothing(split_once, shares, chunk):
    folder, shards = split_once("gqa2", 1)
    result = run_pipeline(
        shards, list(PROMPT_IDS), 8, world_size=len(shares), shares=shares, prefill_chunk=chunk
    )
    assert result.row() == list(reference_tokens(folder))[:8]


def test_second_request_starts_afresh(split_once):
    folder, shards = split_once("gqa2", 1)
    result = run_pipeline(shards, list(PROMPT_IDS), NEW_TOKENS, world_size=3, requests=2)
    assert result.row() == list(reference_tokens(folder))


def test_batch_of_prompts_of_different_length_equals_each_alone(split_once):
    folder, shards = split_once("gqa2", 1)
    prompts = [list(PROMPT_IDS), list(PROMPT_IDS[5:12]), [9]]
    result = run_pipeline(shards, prompts, 16, world_size=3)
    for row, prompt in enumerate(prompts):
        assert result.row(row) == list(reference_tokens(folder, tuple(prompt), 16))


def test_bfloat16_stays_within_its_bound(split_once):
    folder, shards = split_once("bfloat16", 1)
    result = run_pipeline(shards, list(PROMPT_IDS), NEW_TOKENS, world_size=3, dtype="bfloat16")
    check_bounded(result.row(), folder)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_counters_are_the_closed_form(split_once, world_size):
    _, shards = split_once("gqa2", 1)
    result = run_pipeline(shards, list(PROMPT_IDS), 3, world_size=world_size, prefill_chunk=11)
    for rank, sent in enumerate(result.sent):
        assert sent == [traffic(rank, world_size, rows, 256) for rows in (11, 11, 2, 1, 1)]
    messages = sum(sent[-1][0] for sent in result.sent)
    assert messages == (world_size if world_size > 1 else 0)


def test_a_rank_that_computes_nan_is_named():
    parts = NoReduce(Ranks(2, 3), None)
    values = torch.zeros(4)
    parts.reduce(values, step=7, layer=1, op=Op.FFN)
    values[1] = torch.nan
    with pytest.raises(NumericsError, match=r"rank 2 computed NaN.*ffn sum of step 7, layer 1"):
        parts.all_reduce(values, step=7, layer=1, op=Op.FFN)


def test_a_rank_at_work_shows_that_it_gets_on(monkeypatch):
    now_ns = [10**12]
    monkeypatch.setattr("baselines.pipeline.engine.time.monotonic_ns", lambda: now_ns[0])
    shown: list[int] = []
    parts = NoReduce(Ranks(0, 2), shown.append)
    for _ in range(9):  # blocks of 0.1 s
        parts.all_reduce(torch.zeros(1), step=0, layer=0, op=Op.ATTN)
        now_ns[0] += 100_000_000
    assert [value >> 10 for value in shown] == [1, 4, 7]
    assert len({value >> 10 for value in shown}) == len(shown)


# --- real processes --------------------------------------------------------------------------


def make_pipeline_specs(
    folder, world_size, *, new_tokens=NEW_TOKENS, max_tokens=64, shares=None, **options
):
    """Specs of a checkpoint that is split for one device."""
    shards = split_checkpoint(
        folder, "gqa2", 1, num_hidden_layers=5, max_position_embeddings=20_100
    )
    (master,) = make_specs(
        shards,
        new_tokens=new_tokens,
        max_tokens=max_tokens,
        prompt=PROMPT_IDS,
        own={"shares": shares},
        **options,
    )
    master = replace(master, system="pipeline", world_size=world_size)
    workers = [
        replace(master, rank=rank, requests=(Request("r0", new_tokens),))
        for rank in range(1, world_size)
    ]
    return [master, *workers]


@pytest.mark.slow
@pytest.mark.timeout(90)
@pytest.mark.parametrize(("world_size", "shares"), [(1, None), (3, [1, 2, 2])])
def test_real_processes_give_the_tokens_and_count_their_time(tmp_path, world_size, shares):
    specs = make_pipeline_specs(tmp_path / "model", world_size, shares=shares, prefill_chunk=10)
    nodes = run_request(specs, tmp_path, "baselines.pipeline.program")
    assert nodes.tokens() == list(reference_tokens(tmp_path / "model" / "checkpoint"))
    for rank in range(world_size):
        (ready,), (counters,) = nodes.events(rank, "ready"), nodes.events(rank, "counters")
        assert (ready["window"], ready["retained"]) == ("all", 0)
        assert ready["predicted_peak_bytes"] > 200 << 20
        sent = traffic(rank, world_size, 1, 256)
        assert counters["messages_sent_decode"] == sent[0] * (NEW_TOKENS - 1)
        assert counters["wire_bytes_sent_decode"] == sent[1] * (NEW_TOKENS - 1)
        assert counters["messages_sent"] == sent[0] * (NEW_TOKENS + 2)
        assert counters["compute_s"] > 0
        assert (counters["allreduce_s"] > 0) == (world_size > 1)
        assert counters["disk_bytes_decode"] <= NEW_TOKENS * 8192


@pytest.mark.slow
@pytest.mark.timeout(60)
@pytest.mark.parametrize("victim", [0, 1])
def test_killed_rank_is_named_by_all_others(tmp_path, victim):
    specs = make_pipeline_specs(tmp_path / "model", 3, new_tokens=20_000, max_tokens=20_040)
    with Nodes(specs, tmp_path, "baselines.pipeline.program") as nodes:
        nodes.wait_for("ready", ranks=range(3))
        nodes.go("r0")
        nodes.wait_for("token", ranks=[0])
        nodes.signal(victim, signal.SIGKILL)
        others = [rank for rank in range(3) if rank != victim]
        for error in nodes.errors_of(others).values():
            assert error["code"] == "peer_lost"
            assert f"rank {victim}" in error["message"]
        assert set(nodes.exit_codes(others)) == {10}


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_more_devices_than_layers_and_foreign_folders_are_refused(tmp_path):
    specs = make_pipeline_specs(tmp_path / "model", 6)
    with Nodes(specs[:1], tmp_path, "baselines.pipeline.program") as nodes:
        (error,) = nodes.errors_of([0]).values()
        assert error["code"] == "config"
        assert "6 devices, but the model has 5 layers" in error["message"]
        assert nodes.exit_codes([0]) == [2]
    split_for_two = split_checkpoint(tmp_path / "two", "gqa2", 2)
    spec = replace(specs[0], world_size=2, model_dir=split_for_two / "rank-0")
    with Nodes([spec], tmp_path, "baselines.pipeline.program") as nodes:
        (error,) = nodes.errors_of([0]).values()
        assert "expected that of rank 0 of 1" in error["message"]


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"shares": [1, "x"]}, {"shares": 3}, {"window": 2}])
def test_options_that_do_not_fit_are_refused(tmp_path, options):
    spec = make_pipeline_specs(tmp_path / "model", 2)[0]
    spec = replace(spec, options=options)
    with pytest.raises(ConfigError, match=next(iter(options))):
        setup(spec)
