import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tpi.model_config import load_preset
from tpi.planner.propositions import (
    LayerTimes,
    published_block_bytes,
    published_eq_5,
    published_eq_6,
    published_loose_steady_state,
    published_peak_bytes,
    published_retention_steady_state,
    published_stalls,
    published_tight_steady_state,
)

MIB = 1 << 20
LAYERS = 32
# Section 3.3: Llama 2-7B on four laptops, a quarter each.
PAPER = LayerTimes(
    attn_s=0.011, ffn_s=0.017, allreduce_s=0.014, attn_load_s=0.018, ffn_load_s=0.030
)


def test_papers_example_meets_the_loose_condition_and_not_the_tight_one():
    assert published_loose_steady_state(PAPER, LAYERS)
    assert not published_tight_steady_state(PAPER)


def test_papers_example_fails_eq_5_in_the_first_layer_only_and_eq_6_nowhere():
    layers = range(1, LAYERS + 1)
    assert [n for n in layers if not published_eq_5(PAPER, n)] == [1]
    assert all(published_eq_6(PAPER, n) for n in layers)


def test_papers_example_stalls_once_at_the_first_ffn_block():
    stalls = published_stalls(PAPER, LAYERS)
    assert len(stalls) == 2 * LAYERS - 1
    assert stalls[0] == pytest.approx(0.030 - 0.011 - 0.014)
    assert all(stall < 1e-12 for stall in stalls[1:])


TIMES = st.integers(1, 100).map(float)  # sums of whole numbers are exact
ANY_TIMES = st.builds(LayerTimes, TIMES, TIMES, TIMES, TIMES, TIMES)


@settings(deadline=None)
@given(times=ANY_TIMES, num_layers=st.integers(1, 12))
def test_tight_condition_means_no_stall_and_implies_the_loose_one(times, num_layers):
    if published_tight_steady_state(times):
        assert sum(published_stalls(times, num_layers)) < 1e-9
        assert published_loose_steady_state(times, num_layers)


@settings(deadline=None)
@given(times=ANY_TIMES, num_layers=st.integers(1, 12))
def test_eq_5_in_every_layer_and_eq_4_mean_that_no_ffn_block_stalls(times, num_layers):
    total = times.attn_s + times.ffn_s + 2 * times.allreduce_s
    if total >= times.ffn_load_s + times.attn_load_s and all(
        published_eq_5(times, n) for n in range(1, num_layers + 1)
    ):
        assert sum(published_stalls(times, num_layers)[0::2]) < 1e-9


def test_retaining_ffn_blocks_reaches_the_steady_state_where_nothing_else_does():
    slow_disk = LayerTimes(0.011, 0.017, 0.014, 0.018, 0.045)
    assert not published_loose_steady_state(slow_disk, LAYERS)
    assert not published_retention_steady_state(slow_disk, LAYERS, period=LAYERS)
    assert published_retention_steady_state(slow_disk, LAYERS, period=2)
    assert published_retention_steady_state(slow_disk, LAYERS, period=1)


def test_block_sizes_are_those_of_table_4():
    size = published_block_bytes(load_preset("llama2-7b"), kv_heads=8, ffn_columns=2752)
    rounded = {kind: round(num_bytes / MIB) for kind, num_bytes in size.items()}
    assert rounded == {"preprocess": 500, "attention": 64, "ffn": 129, "postprocess": 500}


@pytest.mark.parametrize(
    ("window", "attentions", "ffns"), [(2, 0, 0), (3, 0, 1), (4, 1, 1), (5, 1, 2)]
)
def test_published_master_peak_is_embedding_head_and_the_blocks_between(window, attentions, ffns):
    config = load_preset("llama2-7b")
    size = published_block_bytes(config, kv_heads=8, ffn_columns=2752)
    expected = size["preprocess"] + size["postprocess"]
    expected += attentions * size["attention"] + ffns * size["ffn"]
    assert published_peak_bytes(config, 0.25, window, is_master=True) == pytest.approx(expected)


def test_published_peak_of_a_window_of_one_and_of_a_worker():
    config = load_preset("llama2-7b")
    size = published_block_bytes(config, kv_heads=8, ffn_columns=2752)
    one = published_peak_bytes(config, 0.25, 1, is_master=True)
    assert one == pytest.approx(size["postprocess"])
    worker = published_peak_bytes(config, 0.25, 3, is_master=False)
    assert worker == pytest.approx(size["attention"] + 2 * size["ffn"])
