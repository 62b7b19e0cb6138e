"""Galaxy's tokens are Transformers'; over memory channels, and a few with real processes."""

import signal

import pytest
import torch
from msgspec.structs import replace

from baselines.galaxy.engine import open_galaxy, setup
from baselines.galaxy.tiles import splits_rows
from tests.baselines.distributed import check_bounded, check_logits, run_request, splitter
from tests.baselines.galaxy.traffic import traffic
from tests.checkpoints import NEW_TOKENS, PROMPT_IDS, reference_tokens
from tests.cluster import cluster_options, run_engines
from tests.nodes import Nodes, make_specs, split_checkpoint
from tpi.errors import ConfigError, NumericsError
from tpi.model.llama import Llama
from tpi.options import ComputeOptions
from tpi.weights.blockfile import open_shard_folder

KINDS = ("mha", "gqa2", "tied", "llama3_rope", "bias", "llama_bias", "qk_norm", "odd")
UNEVEN = [(3, 1), (1, 0), (0, 1), (2, 1, 1), (9, 9, 0.5), (4, 1, 0, 2), (1, 0, 0, 3)]


@pytest.fixture(scope="module")
def split_once():
    with splitter() as make:
        yield make


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def run_galaxy(shards, prompt, new_tokens, *, overlap=True, requests=1, **options):
    world_size = len(list(shards.glob("rank-*/manifest.json")))
    manifests = [open_shard_folder(shards / f"rank-{r}", verify=False) for r in range(world_size)]
    settings = cluster_options(prompt, new_tokens, window=None, allreduce="ring", **options)

    def open_rank(rank, mesh, tracer):
        return open_galaxy(manifests[rank], mesh, settings, tracer, overlap=overlap)

    return run_engines(world_size, open_rank, prompt, new_tokens, requests=requests)


@pytest.mark.parametrize(
    ("kind", "world_size"),
    [*((kind, 2 + index % 2) for index, kind in enumerate(KINDS)), ("gqa2", 1), ("gqa2", 4)],
)
def test_tokens_and_logits_are_those_of_transformers(split_once, kind, world_size):
    folder, shards = split_once(kind, world_size)
    result = run_galaxy(shards, list(PROMPT_IDS), NEW_TOKENS)
    assert result.row() == list(reference_tokens(folder))
    check_logits(result, folder)


@pytest.mark.parametrize("shares", UNEVEN, ids=str)
def test_uneven_shares_and_ranks_without_heads_or_columns(split_once, shares):
    folder, shards = split_once("llama_bias", len(shares), shares)
    result = run_galaxy(shards, list(PROMPT_IDS), NEW_TOKENS)
    assert result.row() == list(reference_tokens(folder))
    check_logits(result, folder)


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 7, 24])
@pytest.mark.parametrize("overlap", [True, False])
def test_chunks_smaller_and_larger_than_the_ranks_change_nothing(split_once, chunk, overlap):
    folder, shards = split_once("gqa2", 3)
    result = run_galaxy(shards, list(PROMPT_IDS), 8, prefill_chunk=chunk, overlap=overlap)
    assert result.row() == list(reference_tokens(folder))[:8]


def test_overlap_changes_no_bit(split_once):
    _, shards = split_once("llama_bias", 3)
    logits = [
        torch.cat(run_galaxy(shards, list(PROMPT_IDS), 3, overlap=overlap).logits)
        for overlap in (True, False)
    ]
    assert torch.equal(*logits)


def test_second_request_starts_afresh(split_once):
    folder, shards = split_once("gqa2", 4)
    result = run_galaxy(shards, list(PROMPT_IDS), NEW_TOKENS, requests=2)
    assert result.row() == list(reference_tokens(folder))


@pytest.mark.parametrize("shares", [None, (9, 9, 0.5), (4, 1, 0, 2)], ids=str)
def test_counters_are_the_closed_form(split_once, shares):
    world_size = len(shares or (1, 1, 1))
    _, shards = split_once("llama_bias", world_size, shares)
    manifest = open_shard_folder(shards / "rank-0", verify=False)
    model, plan = manifest.config, manifest.plan
    result = run_galaxy(shards, list(PROMPT_IDS), 3, prefill_chunk=11)
    steps = [11, 11, 2, 1, 1]
    assert [splits_rows(plan, rows) for rows in steps] == [True, True, False, False, False]
    for rank, sent in enumerate(result.sent):
        assert sent == [
            traffic(plan, rank, rows, model.num_layers, model.hidden_size) for rows in steps
        ]


def test_bfloat16_stays_within_its_bound(split_once):
    folder, shards = split_once("bfloat16", 3)
    result = run_galaxy(shards, list(PROMPT_IDS), NEW_TOKENS, dtype="bfloat16")
    check_bounded(result.row(), folder)


@pytest.mark.parametrize("overlap", [True, False])
def test_a_rank_that_computes_nan_in_prefill_is_named(split_once, monkeypatch, overlap):
    _, shards = split_once("gqa2", 3)
    original = Llama.gate_up

    def gate_up(self, x_ND, weights):
        gate_Nf = original(self, x_ND, weights)
        return gate_Nf.fill_(torch.nan) if self._share.q_start == 0 else gate_Nf

    monkeypatch.setattr(Llama, "gate_up", gate_up)
    with pytest.raises(NumericsError, match=r"rank 0 computed NaN .* ffn sum of step 0, layer 0"):
        run_galaxy(shards, list(PROMPT_IDS), 2, overlap=overlap)


@pytest.mark.parametrize("part", ["norm", "gate_up", "attend"])
def test_prefill_without_one_part_makes_other_tokens(split_once, monkeypatch, part):
    """The reference is reached by all parts together, on rows that more than one rank owns."""
    folder, shards = split_once("gqa2", 2)
    original = getattr(Llama, part)

    def without(self, x, *rest):
        return x.clone() if part == "norm" else original(self, x, *rest).zero_()

    monkeypatch.setattr(Llama, part, without)
    result = run_galaxy(shards, list(PROMPT_IDS), 8)
    assert result.row() != list(reference_tokens(folder))[:8]


# --- real processes --------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(90)
@pytest.mark.parametrize(
    ("kind", "shares", "options", "own"),
    [
        ("gqa2", (1, 1), {"prefill_chunk": 10}, {}),
        ("llama_bias", (2, 1, 1), {}, {"overlap": False}),
        ("bias", (1, 2, 0, 3), {}, {}),
    ],
)
def test_real_processes_give_the_tokens_and_count_their_time(tmp_path, kind, shares, options, own):
    shards = split_checkpoint(tmp_path / "model", kind, len(shares), shares)
    specs = make_specs(
        shards, new_tokens=NEW_TOKENS, max_tokens=64, prompt=PROMPT_IDS, own=own, **options
    )
    nodes = run_request(specs, tmp_path, "baselines.galaxy.program")
    assert nodes.tokens() == list(reference_tokens(tmp_path / "model" / "checkpoint"))
    plan = open_shard_folder(shards / "rank-0", verify=False).plan
    for rank in range(len(shares)):
        (ready,), (counters,) = nodes.events(rank, "ready"), nodes.events(rank, "counters")
        assert (ready["window"], ready["retained"]) == ("all", 0)
        messages, num_bytes = traffic(plan, rank, 1, 3, 256)
        assert counters["messages_sent_decode"] == messages * (NEW_TOKENS - 1)
        assert counters["wire_bytes_sent_decode"] == num_bytes * (NEW_TOKENS - 1)
        assert counters["allreduce_s"] > 0
        assert (counters["compute_s"] > 0) == (shares[rank] > 0 or rank == 0)
        assert counters["disk_bytes_decode"] <= NEW_TOKENS * 8192


@pytest.fixture(scope="module")
def long_specs(tmp_path_factory):
    """A prompt whose prefill takes thousands of passes."""
    shards = split_checkpoint(
        tmp_path_factory.mktemp("model"), "mha", 3, max_position_embeddings=20_000
    )
    prompt = tuple(i % 500 for i in range(19_000))
    return make_specs(shards, new_tokens=900, max_tokens=20_000, prompt=prompt, prefill_chunk=6)


def in_prefill(specs, tmp_path) -> Nodes:
    """Nodes whose counters say that a ring is on its way."""
    nodes = Nodes(specs, tmp_path, "baselines.galaxy.program")
    nodes.wait_for("ready", ranks=range(3))
    nodes.go("r0")
    nodes.wait_for("request", ranks=[0])
    return nodes


@pytest.mark.slow
@pytest.mark.timeout(60)
@pytest.mark.parametrize("victim", [0, 1])
def test_rank_killed_in_prefill_is_named_by_all_others(long_specs, tmp_path, victim):
    with in_prefill(long_specs, tmp_path) as nodes:
        nodes.signal(victim, signal.SIGKILL)
        others = [rank for rank in range(3) if rank != victim]
        for error in nodes.errors_of(others).values():
            assert error["code"] == "peer_lost"
            assert f"rank {victim}" in error["message"]
        assert set(nodes.exit_codes(others)) == {10}
        assert not nodes.tokens()


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_rank_interrupted_in_prefill_ends_at_once_and_is_named(long_specs, tmp_path):
    with in_prefill(long_specs, tmp_path) as nodes:
        nodes.signal(1, signal.SIGTERM)
        for error in nodes.errors_of([0, 2]).values():
            assert error["code"] == "peer_lost"
            assert "rank 1" in error["message"]
        assert nodes.exit_codes([1, 0, 2]) == [130, 10, 10]
        assert not nodes.tokens()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"options": {"window": 2}}, "window"),
        ({"options": {"overlap": 1}}, "overlap"),
        ({"compute": ComputeOptions(max_batch=2)}, "batch 1"),
    ],
)
def test_specs_that_do_not_fit_are_refused(long_specs, changes, word):
    with pytest.raises(ConfigError, match=word):
        setup(replace(long_specs[0], **changes))
