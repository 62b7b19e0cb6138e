"""The tokens of a cluster are Transformers' tokens: shapes x devices x windows, one process.

Every run is poisoned: memory that the window takes back is NaN, so a late read would show.
`tests/test_processes.py` has the same with real processes.
"""

import functools
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.checkpoints import NEW_TOKENS, PROMPT_IDS, reference_logits, reference_tokens
from tests.checkpoints import shared_checkpoint as checkpoint
from tests.cluster import run_cluster
from tests.comm.allreduces.traffic import traffic
from tpi.build_engine import plan_rank
from tpi.comm.allreduces.registry import allreduce_names
from tpi.comm.wire import HEADER_BYTES
from tpi.model.kernels import Kernels
from tpi.model.llama import Llama
from tpi.model_config import RopeScaling
from tpi.options import ComputeOptions
from tpi.weights.blockfile import open_shard_folder
from tpi.weights.checkpoint import open_checkpoint
from tpi.weights.shard import make_shard_plan
from tpi.weights.split import split

KINDS = ("mha", "gqa2", "tied", "llama3_rope", "bias", "qk_norm", "uneven")
WINDOWS = (1, 2, 4, None)
UNEVEN = {1: (1,), 2: (3, 1), 3: (2, 1, 1), 4: (4, 1, 0, 2), 5: (1, 2, 0, 3, 1)}


@pytest.fixture(scope="module")
def split_once():
    """Split a shared checkpoint once for all windows."""
    root = Path(tempfile.mkdtemp(prefix="tpi-test-split-"))

    @functools.cache
    def make(kind: str, world_size: int) -> tuple[Path, Path]:
        folder = checkpoint("mha" if kind == "uneven" else kind)
        source = open_checkpoint(folder)
        shares = UNEVEN[world_size] if kind == "uneven" else None
        out = root / f"{kind}-{world_size}"
        split(source, make_shard_plan(source.config, world_size, shares), out)
        return folder, out

    yield make
    shutil.rmtree(root)


def check_logits(result, folder, tokens):
    """Largest logit error within 1e-4 of the largest logit, over all steps."""
    expected_SV = reference_logits(folder, [*PROMPT_IDS, *tokens[:-1]])[len(PROMPT_IDS) - 1 :]
    got_SV = torch.cat(result.logits)
    assert (got_SV - expected_SV).abs().max() <= 1e-4 * expected_SV.abs().max()


# How heads are cut depends on the devices: own, shared and uneven heads meet every number of them,
# the other kinds two. The windows take turns.
@pytest.mark.parametrize(
    ("kind", "world_size", "window"),
    [
        (kind, world_size, WINDOWS[(index + world_size) % len(WINDOWS)])
        for index, kind in enumerate(KINDS)
        for world_size in (UNEVEN if kind in ("mha", "gqa2", "uneven") else (2 + index % 2, 5))
    ],
)
def test_tokens_are_those_of_transformers(split_once, kind, world_size, window):
    folder, shards = split_once(kind, world_size)
    result = run_cluster(shards, list(PROMPT_IDS), NEW_TOKENS, window=window)
    assert result.row() == list(reference_tokens(folder))
    check_logits(result, folder, result.row())


def test_reference_is_worth_comparing_with():
    assert NEW_TOKENS >= 32
    for kind in KINDS[:-1]:
        assert len(set(reference_tokens(checkpoint(kind)))) >= 16, kind
    assert len(PROMPT_IDS) > 16  # original_max_position_embeddings of llama3_rope


@pytest.mark.parametrize("algorithm", allreduce_names())
def test_every_allreduce_gives_the_same_tokens(split_once, algorithm):
    folder, shards = split_once("gqa2", 4)
    result = run_cluster(shards, list(PROMPT_IDS), NEW_TOKENS, allreduce=algorithm)
    assert result.row() == list(reference_tokens(folder))


@pytest.mark.parametrize("world_size", [1, 3, 4])
@pytest.mark.parametrize("algorithm", allreduce_names())
def test_a_token_costs_a_broadcast_2l_minus_1_allreduces_and_a_reduce(
    split_once, algorithm, world_size
):
    _, shards = split_once("gqa2", world_size)
    result = run_cluster(shards, list(PROMPT_IDS), 4, allreduce=algorithm)
    layers, width = 3, 256
    whole = HEADER_BYTES + 4 * width
    for rank, sent in enumerate(result.sent):
        messages, num_bytes = traffic(algorithm, rank, world_size, width, 4)
        # The broadcast from the master, or the part of the last sum to it.
        others = (world_size - 1) if rank == 0 else 1
        per_token = (
            (2 * layers - 1) * messages + others,
            (2 * layers - 1) * num_bytes + others * whole,
        )
        assert len(sent) == 4
        assert sent[1:] == [per_token] * 3


@pytest.mark.parametrize("chunk", [1, 7, 24])
def test_prefill_in_chunks_changes_nothing(split_once, chunk):
    folder, shards = split_once("gqa2", 2)
    result = run_cluster(shards, list(PROMPT_IDS), NEW_TOKENS, prefill_chunk=chunk)
    assert result.row() == list(reference_tokens(folder))


def test_second_request_starts_afresh(split_once):
    folder, shards = split_once("gqa2", 3)
    result = run_cluster(shards, list(PROMPT_IDS), NEW_TOKENS, requests=2)
    assert result.row() == list(reference_tokens(folder))


def test_batch_of_prompts_of_different_length_equals_each_alone(split_once):
    folder, shards = split_once("gqa2", 3)
    prompts = [list(PROMPT_IDS), list(PROMPT_IDS[5:12]), [9]]
    result = run_cluster(shards, prompts, 16)
    for row, prompt in enumerate(prompts):
        assert result.row(row) == list(reference_tokens(folder, tuple(prompt), 16))


def test_memory_budget_reads_only_what_is_not_retained(split_once):
    folder, shards = split_once("mha", 2)
    manifests = [open_shard_folder(shards / f"rank-{r}", verify=False) for r in range(2)]
    options = ComputeOptions(max_tokens=len(PROMPT_IDS) + NEW_TOKENS)
    low = plan_rank(manifests[0], options)
    total = sum(e.num_bytes for e in manifests[0].blocks if e.id.kind != "embed")
    budget = low.peak_bytes + (total - low.arena_bytes) // 2
    choice = plan_rank(manifests[0], ComputeOptions(max_tokens=56, memory_budget=budget))
    assert choice.retained
    assert 0 < choice.streamed_bytes_per_pass < total
    result = run_cluster(shards, list(PROMPT_IDS), NEW_TOKENS, memory_budget=budget)
    assert result.row() == list(reference_tokens(folder))
    rows = result.disk_bytes[0] - NEW_TOKENS * choice.streamed_bytes_per_pass
    assert 0 < rows <= (NEW_TOKENS + len(PROMPT_IDS)) * 2 * 4096


def _drop_block(kind):
    def change(patch):
        original = getattr(Llama, f"_{kind}")

        def dropped(self, hidden_BSD, layer, *rest):
            partial_BSD = original(self, hidden_BSD, layer, *rest)
            return partial_BSD.zero_() if layer == 1 else partial_BSD

        patch.setattr(Llama, f"_{kind}", dropped)

    return change


def _drop_norm(patch):
    patch.setattr(Llama, "norm", lambda _self, x, _weight: x.clone())


def _drop_bias(patch):
    original = Kernels.project

    def project(self, x_SK, weights, *names):
        return original(self, x_SK, {n: w for n, w in weights.items() if "bias" not in n}, *names)

    patch.setattr(Kernels, "project", project)


def _unchanged(_patch):
    pass


@pytest.mark.parametrize(
    ("kind", "mutate", "changes"),
    [
        ("gqa2", _drop_block("attn"), {}),
        ("gqa2", _drop_block("ffn"), {}),
        ("gqa2", _drop_norm, {}),
        ("bias", _drop_bias, {}),
        ("qk_norm", _unchanged, {"qk_norm": False}),
        ("llama3_rope", _unchanged, {"rope": RopeScaling()}),
    ],
    ids=["attention", "ffn", "norm", "bias", "qk_norm", "rope_scaling"],
)
def test_model_without_one_part_makes_other_tokens(split_once, monkeypatch, kind, mutate, changes):
    folder, shards = split_once(kind, 2)
    manifests = [open_shard_folder(shards / f"rank-{r}", verify=False) for r in range(2)]
    manifests = [replace(m, config=replace(m.config, **changes)) for m in manifests]
    mutate(monkeypatch)
    result = run_cluster(shards, list(PROMPT_IDS), NEW_TOKENS, manifests=manifests)
    assert result.row() != list(reference_tokens(folder))
