"""The model on one and more ranks against Transformers, and against itself cut differently."""

import dataclasses
from collections.abc import Callable

import pytest
import torch

from tests.checkpoints import (
    KINDS,
    PROMPT_IDS,
    make_checkpoint,
    reference_logits,
    reference_model,
    reference_tokens,
    shared_checkpoint,
)
from tests.model.ranks import Ranks, relative_error
from tpi.errors import ConfigError
from tpi.model.llama import Llama
from tpi.model_config import RopeScaling
from tpi.trace import Tracer
from tpi.weights.shard import BlockId

TOLERANCE = 1e-4
PROMPT = torch.tensor([PROMPT_IDS])


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def decoded_logits(ranks: Ranks, ids: torch.Tensor, prompt_length: int) -> torch.Tensor:
    """Prefill, then one token at a time. Shapes: (B, S) -> (B, S, V)."""
    ranks.reset(ids.shape[0])
    parts = [ranks.logits(ids[:, :prompt_length])]
    parts += [ranks.logits(ids[:, t : t + 1], t) for t in range(prompt_length, ids.shape[1])]
    return torch.cat(parts, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_prefill_and_decode_give_the_logits_of_transformers(kind):
    folder = shared_checkpoint(kind)
    ids = torch.tensor([PROMPT_IDS + reference_tokens(folder)[:6]])
    logits = decoded_logits(Ranks(folder), ids, len(PROMPT_IDS))
    assert relative_error(logits[0], reference_logits(folder, ids[0].tolist())) <= TOLERANCE


@pytest.mark.parametrize("world_size", [2, 3, 4])
@pytest.mark.parametrize("kind", ["mha", "gqa2", "odd", "llama_bias", "bias", "qk_norm", "tied"])
def test_ranks_together_give_the_logits_of_transformers(kind, world_size):
    folder = shared_checkpoint(kind)
    ids = torch.tensor([PROMPT_IDS + reference_tokens(folder)[:3]])
    logits = decoded_logits(Ranks(folder, world_size), ids, len(PROMPT_IDS))
    assert relative_error(logits[0], reference_logits(folder, ids[0].tolist())) <= TOLERANCE


@pytest.mark.parametrize(
    "weights", [(2, 1, 1), (5, 2, 1, 1), (0, 1, 1), (1, 0), (7, 1), (1, 0, 3)], ids=str
)
def test_uneven_shares_and_ranks_with_none_give_the_logits_of_transformers(weights):
    folder = shared_checkpoint("llama_bias")
    ranks = Ranks(folder, len(weights), weights=weights)
    logits = decoded_logits(ranks, PROMPT, 21)
    assert relative_error(logits[0], reference_logits(folder, PROMPT_IDS)) <= TOLERANCE


def test_a_rank_may_hold_columns_and_no_heads():
    folder = shared_checkpoint("llama_bias")
    ranks = Ranks(folder, 3, weights=(9, 9, 0.5))
    assert [share.local_num_heads for share in ranks.plan.shares] == [4, 4, 0]
    assert all(share.local_ffn_size for share in ranks.plan.shares)
    logits = decoded_logits(ranks, PROMPT, 21)
    assert relative_error(logits[0], reference_logits(folder, PROMPT_IDS)) <= TOLERANCE


def test_greedy_tokens_equal_those_of_transformers():
    folder = shared_checkpoint("llama3_rope")
    ranks = Ranks(folder, 2)
    logits, tokens = ranks.logits(PROMPT)[:, -1], []
    for position in range(PROMPT.shape[1], PROMPT.shape[1] + 32):
        tokens.append(int(logits.argmax()))
        logits = ranks.logits(torch.tensor([tokens[-1:]]), position)[:, -1]
    assert tuple(tokens) == reference_tokens(folder)
    assert len(set(tokens)) >= 16


@pytest.mark.parametrize("chunks", [(1, 23), (8, 8, 8), (23, 1), (1,) * 24], ids=str)
@pytest.mark.parametrize("world_size", [1, 3])
def test_prefill_in_chunks_equals_prefill_at_once(world_size, chunks):
    ranks = Ranks(shared_checkpoint("gqa2"), world_size)
    whole = ranks.logits(PROMPT)
    parts, start = [], 0
    for length in chunks:
        parts.append(ranks.logits(PROMPT[:, start : start + length], start))
        start += length
    assert relative_error(torch.cat(parts, 1), whole) < 1e-5


@pytest.mark.parametrize("kind", ["gqa2", "llama3_rope"])
@pytest.mark.parametrize("world_size", [1, 3])
def test_ragged_batch_gives_each_sequence_its_own_logits(kind, world_size):
    folder = shared_checkpoint(kind)
    rows = [PROMPT_IDS, PROMPT_IDS[3:14], PROMPT_IDS[5:6]]
    pads = [24 - len(row) for row in rows]
    ids = torch.tensor([[7] * pad + list(row) for pad, row in zip(pads, rows, strict=True)])
    more = torch.tensor([[11, 12], [13, 14], [15, 16]])
    ranks = Ranks(folder, world_size, max_batch=4)
    ranks.reset(3, pads)
    logits = torch.cat(
        [
            ranks.logits(ids[:, :10]),  # a chunk in which one sequence is padding only
            ranks.logits(ids[:, 10:], 10),
            ranks.logits(more[:, :1], 24),
            ranks.logits(more[:, 1:], 25),
        ],
        1,
    )
    assert torch.isfinite(logits).all()
    for b, (pad, row) in enumerate(zip(pads, rows, strict=True)):
        expected = reference_logits(folder, [*row, *more[b].tolist()])
        assert relative_error(logits[b, pad:], expected) <= TOLERANCE


def test_equal_pads_of_a_batch_of_one_are_left_out():
    folder = shared_checkpoint("gqa2")
    ranks = Ranks(folder, 2, max_batch=2)
    ranks.reset(1, [4])
    logits = ranks.logits(PROMPT)
    assert relative_error(logits[0, 4:], reference_logits(folder, PROMPT_IDS[4:])) <= TOLERANCE


def test_batch_of_equal_lengths_without_pads():
    folder = shared_checkpoint("gqa2")
    ids = torch.tensor([PROMPT_IDS, PROMPT_IDS[::-1]])
    logits = decoded_logits(Ranks(folder, 2, max_batch=2), ids, 20)
    for b in range(2):
        assert relative_error(logits[b], reference_logits(folder, ids[b].tolist())) <= TOLERANCE


@pytest.mark.parametrize("storage", ["bfloat16", "float16"])
@pytest.mark.parametrize("world_size", [1, 2])
def test_float32_compute_from_16_bit_storage_is_float32_exact(storage, world_size):
    folder = shared_checkpoint(storage)
    ids = torch.tensor([PROMPT_IDS + reference_tokens(folder)[:4]])
    logits = decoded_logits(Ranks(folder, world_size), ids, len(PROMPT_IDS))
    assert relative_error(logits[0], reference_logits(folder, ids[0].tolist())) <= TOLERANCE


@pytest.mark.parametrize("storage", ["bfloat16", "float32", "float16"])
@pytest.mark.parametrize("kind", ["bfloat16", "bias", "qk_norm"])
def test_bfloat16_compute_is_within_twice_the_error_of_transformers(kind, storage, tmp_path):
    # The same weights, representable in bfloat16, for both.
    folder = shared_checkpoint("bfloat16")
    if kind != "bfloat16":
        folder = make_checkpoint(tmp_path, kind)
        rounded = reference_model(folder).bfloat16()
        rounded.save_pretrained(folder)
        reference_model.cache_clear()
    ids = list(PROMPT_IDS)
    expected = reference_logits(folder, ids)
    half = type(reference_model(folder)).from_pretrained(folder, dtype=torch.bfloat16).eval()
    with torch.inference_mode():
        theirs = half(torch.tensor([ids])).logits[0].float()
    ranks = Ranks(folder, 2, compute=torch.bfloat16, storage=storage)
    ours = decoded_logits(ranks, PROMPT, 20)[0]
    bound = 2 * (theirs - expected).abs().max()
    assert (ours - expected).abs().max() <= bound
    greedy = ours.argmax(-1, keepdim=True)
    short = expected.max(-1).values - expected.gather(1, greedy)[:, 0]
    assert short.max() <= bound


def test_reduces_come_in_order_and_the_last_is_marked():
    ranks = Ranks(shared_checkpoint("gqa2"), 2)
    ranks.logits(PROMPT)
    last = ranks.config.num_layers - 1
    assert ranks.sum.calls == [
        (layer, kind, (layer, kind) == (last, "ffn"))
        for layer in range(last + 1)
        for kind in ("attn", "ffn")
    ]


def test_blocks_are_held_in_the_order_of_the_block_list():
    ranks = Ranks(shared_checkpoint("gqa2"), 2)
    ranks.head(ranks.forward(PROMPT, 0)[:, -1])
    for rank, blocks in enumerate(ranks.blocks):
        assert blocks.held == [b for b in blocks.blocks if b.kind != "embed"], rank


def test_input_is_left_alone():
    ranks = Ranks(shared_checkpoint("gqa2"))
    hidden = ranks.embedding[PROMPT]
    before = hidden.clone()
    result = ranks.models[0].forward(hidden, 0, ranks.blocks[0], ranks.sum.of_rank(0))
    assert torch.equal(hidden, before)
    result.zero_()
    assert torch.equal(hidden, before)


def test_block_is_given_back_before_its_sum_is_formed():
    ranks = Ranks(shared_checkpoint("gqa2"))
    holding = []

    class Watched:
        def hold(self, block):
            context = ranks.blocks[0].hold(block)

            class Context:
                def __enter__(self):
                    holding.append(block)
                    return context.__enter__()

                def __exit__(self, *args):
                    holding.remove(block)
                    return context.__exit__(*args)

            return Context()

    def reduce(partial_BSD, layer, kind, last):
        assert holding == []

    ranks.models[0].forward(ranks.embedding[PROMPT], 0, Watched(), reduce)


@pytest.mark.parametrize(("batch", "pads"), [(0, None), (3, None), (2, [0]), (1, [-1])], ids=str)
def test_request_that_does_not_fit_is_refused(batch, pads):
    model = Ranks(shared_checkpoint("gqa2"), max_batch=2).models[0]
    with pytest.raises(ConfigError, match="batch"):
        model.reset(batch, pads)


@pytest.mark.parametrize(("length", "start"), [(1, 64), (24, 41), (1, -1)])
def test_step_beyond_the_cache_is_refused(length, start):
    ranks = Ranks(shared_checkpoint("gqa2"), max_tokens=64)
    with pytest.raises(ConfigError, match="do not fit the KV cache of 64 tokens"):
        ranks.forward(torch.zeros(1, length, dtype=torch.long), start)


def test_step_of_another_batch_is_refused():
    ranks = Ranks(shared_checkpoint("gqa2"), max_batch=2)
    ranks.reset(2)
    with pytest.raises(ConfigError, match="step of 1 sequences in a request of 2"):
        ranks.forward(PROMPT, 0)


def test_new_request_sees_nothing_of_the_one_before():
    ranks = Ranks(shared_checkpoint("gqa2"))
    first = ranks.logits(PROMPT)
    ranks.logits(PROMPT.flip(1))
    ranks.reset()
    assert torch.equal(ranks.logits(PROMPT), first)


def drop(name: str) -> Callable[..., dict[str, torch.Tensor]]:
    def change(block_id, tensors):
        del block_id
        return {n: torch.zeros_like(t) if n == name else t for n, t in tensors.items()}

    return change


def unscaled_norm(block_id, tensors):
    del block_id
    return {n: torch.ones_like(t) if n == "norm" else t for n, t in tensors.items()}


def no_attention_in_layer_1(block_id, tensors):
    return drop("o")(block_id, tensors) if block_id == BlockId("attn", 1) else tensors


def no_ffn_in_layer_2(block_id, tensors):
    return drop("down")(block_id, tensors) if block_id == BlockId("ffn", 2) else tensors


@pytest.mark.parametrize(
    ("kind", "mutate"),
    [
        ("gqa2", no_attention_in_layer_1), ("gqa2", no_ffn_in_layer_2), ("gqa2", unscaled_norm),
        ("gqa2", drop("k")), ("bias", drop("q_bias")), ("bias", drop("v_bias")),
        ("llama_bias", drop("o_bias")), ("llama_bias", drop("down_bias")),
        ("llama_bias", drop("up_bias")),
    ],
)  # fmt: skip
def test_mutated_model_is_noticed(kind, mutate):
    folder = shared_checkpoint(kind)
    ranks = Ranks(folder)
    ranks.blocks[0].blocks = {b: mutate(b, t) for b, t in ranks.blocks[0].blocks.items()}
    assert relative_error(ranks.logits(PROMPT)[0], reference_logits(folder, PROMPT_IDS)) > 1e-2


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("qk_norm", {"qk_norm": False}),
        ("llama3_rope", {"rope": None}),
        ("linear_rope", {"rope": None}),
    ],
    ids=lambda value: str(value),
)
def test_config_that_drops_a_part_is_noticed(kind, changes):
    folder = shared_checkpoint(kind)
    ranks = Ranks(folder)
    changes = {key: RopeScaling() if key == "rope" else value for key, value in changes.items()}
    ranks.models[0] = Llama(
        dataclasses.replace(ranks.config, **changes), ranks.plan.shares[0],
        compute_dtype=torch.float32, max_batch=1, max_tokens=64, tracer=Tracer(),
    )  # fmt: skip
    assert relative_error(ranks.logits(PROMPT)[0], reference_logits(folder, PROMPT_IDS)) > 1e-2


def test_two_stages_of_layers_give_the_logits_of_all():
    """A rank with some layers keeps a cache of these only, and computes what all would."""
    folder = shared_checkpoint("gqa2")
    whole, parts = Ranks(folder), [Ranks(folder), Ranks(folder)]
    for ranks, layers in zip(parts, (range(2), range(2, 3)), strict=True):
        ranks.models[0] = Llama(
            ranks.config, ranks.plan.shares[0], compute_dtype=torch.float32, max_batch=1,
            max_tokens=64, tracer=Tracer(), layers=layers,
        )  # fmt: skip
    kept = [model.models[0]._cache._cache.nbytes for model in (whole, *parts)]
    assert kept[1:] == [kept[0] * 2 // 3, kept[0] // 3]
    for start, stop in ((0, 20), (20, 21), (21, 24)):
        ids = PROMPT[:, start:stop]
        hidden_BSD = whole.embedding[ids]
        for ranks in parts:
            hidden_BSD = ranks.models[0].forward(
                hidden_BSD, start, ranks.blocks[0], lambda *_whole: None
            )
        assert torch.equal(hidden_BSD, whole.forward(ids, start))
