"""The authors' schedule against sums that can be written down."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from results.paper.authors_model.blocks import block_bytes
from results.paper.authors_model.schedule import Rates, Setup, replay
from tpi.model_config import load_preset

MODELS = ("llama2-3b", "llama2-7b", "llama3.1-8b", "llama2-70b")
ENDLESS = 1e18


def stored(model, world_size, rank):
    """Bytes of the rank's blocks as they are read: in 16 bits."""
    return [size / 2 for size in block_bytes(model, world_size, rank)]


def test_loads_hide_behind_allreduces_alone_at_window_2():
    model, world_size = load_preset("llama2-7b"), 8
    rates, sum_s = Rates(load_bps=1e9, compute_bps=ENDLESS), 2 * 0.01
    master = stored(model, world_size, 0)
    loads = [size / 1e9 for size in master]
    # The first attention block waits for the embedding; from then on the longer of load and sum.
    expected = loads[0] + max(loads[1], sum_s / 2)
    expected += sum(max(load, sum_s) for load in loads[2:])
    setup = Setup(model, world_size, window=2, delay_s=0.01, rate_bps=ENDLESS)
    assert replay(setup, rates).token_latency_s == pytest.approx(expected, rel=1e-6)


def test_one_device_at_window_2_overlaps_nothing():
    model = load_preset("llama2-3b")
    times = replay(Setup(model, 1, window=2), Rates(1e9, 8e9))
    sizes = stored(model, 1, 0)
    products = 2 * sum(sizes[1:]) / 8e9
    assert times.token_latency_s == pytest.approx(sum(sizes) / 1e9 + products)


def test_without_the_scheduler_the_first_token_pays_for_loading():
    model = load_preset("llama2-7b")
    setup = Setup(model, 8, window=None, delay_s=0.001, rate_bps=ENDLESS)
    times = replay(setup, Rates(1e9, ENDLESS))
    assert times.ttft_s == pytest.approx(sum(stored(model, 8, 0)) / 1e9, rel=0.01)
    assert times.token_latency_s == pytest.approx(129 * 0.001, rel=1e-6)  # 2L sums, one broadcast


@given(
    name=st.sampled_from(MODELS[:3]),
    load=st.floats(1e8, 1e10),
    delay=st.floats(0, 0.05),
    window=st.sampled_from([2, 3, 4]),
)
def test_a_larger_window_or_a_faster_disk_is_never_slower(name, load, delay, window):
    model = load_preset(name)
    rates, faster = Rates(load, 3e10), Rates(2 * load, 3e10)
    at = replay(Setup(model, 4, window, delay), rates).token_latency_s
    assert replay(Setup(model, 4, window + 1, delay), rates).token_latency_s <= at + 1e-9
    assert replay(Setup(model, 4, window, delay), faster).token_latency_s <= at + 1e-9
    assert at >= sum(stored(model, 4, 0)) / load / 1.0001
