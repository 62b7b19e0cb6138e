"""The authors' blocks: one size for memory, times and the paper's formulas, on every rank."""

import pytest

from results.paper.authors_model.blocks import block_bytes, deal
from results.paper.authors_model.memory import largest_set
from results.paper.authors_model.schedule import Rates, Setup, replay
from tpi.model_config import load_preset
from tpi.planner.propositions import published_block_bytes, published_peak_bytes
from tpi.ranks import MASTER_RANK
from tpi.weights.hf_folder import required_hf_bytes

GIB = 2**30
MODELS = (
    "llama2-3b", "llama2-7b", "llama2-13b", "llama2-70b", "llama3.1-8b", "llama3.1-70b", "yi-34b",
)  # fmt: skip
COUNTS = range(1, 9)


def test_heads_are_dealt_with_the_remainder_to_the_last_ranks():
    assert deal(8, 6) == (1, 1, 1, 1, 2, 2)
    assert deal(32, 6) == (5, 5, 5, 5, 6, 6)
    assert deal(8, 8) == (1,) * 8


@pytest.mark.parametrize(
    ("model", "rank", "gib"),
    [  # six devices, everything resident, 16-bit copies left out
        ("llama2-70b", 5, 46.25),
        ("llama2-70b", 0, 42.58),
        ("llama3.1-70b", 0, 48.45),
        ("yi-34b", 0, 23.11),
    ],
)
def test_shares_of_six_devices_in_float32(model, rank, gib):
    blocks = block_bytes(load_preset(model), 6, rank)
    assert sum(blocks) / GIB == pytest.approx(gib, abs=0.01)


def test_only_the_master_holds_embedding_and_head():
    config = load_preset("llama2-7b")
    master, worker = block_bytes(config, 4, 0), block_bytes(config, 4, 3)
    assert master[1:-1] == worker
    assert master[0] == 4 * 32000 * 4096
    assert master[-1] == master[0] + 4 * 4096


@pytest.mark.parametrize("name", MODELS)
def test_blocks_of_all_ranks_are_the_model(name):
    config = load_preset(name)
    for count in COUNTS:
        total = sum(sum(block_bytes(config, count, rank)) for rank in range(count))
        norms = 4 * 2 * config.num_layers * config.hidden_size  # every rank has them
        assert total - (count - 1) * norms == required_hf_bytes(config, "float32")


@pytest.mark.parametrize("name", MODELS)
def test_memory_and_times_hold_the_same_blocks(name):
    """Without computing and links, loading all takes what the fullest rank holds."""
    config, load_bps = load_preset(name), 1e9
    for count in COUNTS:
        held = [largest_set(block_bytes(config, count, r), None, 0.0) for r in range(count)]
        setup = Setup(config, count, window=None, rate_bps=1e18)
        ttft_s = replay(setup, Rates(load_bps, compute_bps=1e24)).ttft_s
        assert ttft_s * load_bps * 2 == pytest.approx(max(held), rel=1e-9)


@pytest.mark.parametrize("name", MODELS)
def test_every_rank_holds_what_the_papers_formula_gives_for_its_share(name):
    """Table 4 with the rank's own share; h / a is the size of a head in all the paper's models."""
    config = load_preset(name)
    width, kv = config.hidden_size, config.num_kv_heads / config.num_heads
    for count in COUNTS:
        heads, columns = deal(config.num_kv_heads, count), deal(config.ffn_size, count)
        for rank in range(count):
            share = heads[rank] / config.num_kv_heads
            first = rank == MASTER_RANK
            attn, ffn = block_bytes(config, count, rank)[first : first + 2]
            assert attn == pytest.approx(4 * (2 * (1 + kv) * width**2 * share + width))
            assert ffn == 4 * (3 * width * columns[rank] + width)


@pytest.mark.parametrize("name", MODELS)
def test_proposition_5_counts_the_same_blocks_where_shares_are_even(name):
    config = load_preset(name)
    for count in COUNTS:
        if config.num_kv_heads % count or config.ffn_size % count:
            continue
        blocks = block_bytes(config, count, MASTER_RANK)[1:3]
        peak = published_peak_bytes(config, 1 / count, 2, is_master=False)
        assert peak == pytest.approx(sum(blocks))


def test_an_ffn_block_is_of_whole_columns():
    """7B on three devices: 11008 columns are 3669, 3669 and 3670, not 3669 and a third."""
    config = load_preset("llama2-7b")
    columns = deal(config.ffn_size, 3)
    assert columns == (3669, 3669, 3670)
    held = [block_bytes(config, 3, rank)[-2 if rank == MASTER_RANK else -1] for rank in range(3)]
    assert held == [published_block_bytes(config, 1, each)["ffn"] for each in columns]
