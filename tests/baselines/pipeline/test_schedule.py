from dataclasses import replace

import pytest

from baselines.pipeline.stages import make_stages, stage_peaks
from baselines.registry import simulate
from results.paper.cells.sim_compare import figures_of
from testbed.links.link import LinkSpec, one_way_s
from testbed.sim.base import SimDevice
from tests.baselines.pipeline.closed_form import traffic
from tests.testbed.sim.sims import free_calibration, make_run
from tpi.comm.wire import HEADER_BYTES
from tpi.errors import ConfigError
from tpi.planner.memory import block_bytes
from tpi.weights.shard import make_shard_plan


def counters(outcome):
    return [event for _, event in outcome.events if event.name == "counters"]


@pytest.mark.parametrize("shares", [None, (4, 1, 1), (1, 2, 5)])
def test_stages_and_memory_are_those_of_the_pipeline(shares):
    run = make_run("pipeline", size=3, options={"shares": shares})
    outcome = simulate(run, free_calibration(block_s=1.0))
    stages = make_stages(run.model, 3, shares, "float32")
    peaks = stage_peaks(run.model, 3, shares, "float32", run.compute)
    assert outcome.rss_hwm == peaks
    # Each block takes a second a pass, and the master has the head beside.
    blocks = [2 * len(stage) + (rank == 0) for rank, stage in enumerate(stages)]
    assert [event.number("compute_s") for event in counters(outcome)] == [4 * n for n in blocks]


@pytest.mark.parametrize("chunk", [512, 5])
def test_a_request_sends_what_the_pipeline_sends(chunk):
    run = make_run("pipeline", options={"prefill_chunk": chunk}, prompt_tokens=8, new_tokens=3)
    steps = [8, 1, 1] if chunk == 512 else [5, 3, 1, 1]
    for rank, event in enumerate(counters(simulate(run, free_calibration()))):
        sent = [traffic(rank, 4, rows, run.model.hidden_size) for rows in steps]
        assert event.number("messages_sent") == sum(m for m, _ in sent)
        assert event.number("wire_bytes_sent") == sum(b for _, b in sent)


def test_a_token_takes_all_products_and_one_way_round():
    rate, link = 1e9, LinkSpec(0.003, 50e6)
    device = SimDevice(2.0)
    run = make_run("pipeline", size=3, link=link, device=device)
    calibration = free_calibration(products={"float32->float32": ((1, rate),)})
    blocks = block_bytes(run.model, make_shard_plan(run.model, 1), 0, "float32")
    products_s = sum(n for b, n in blocks if b.kind != "embed") / rate / 2
    hop_s = one_way_s(4 * run.model.hidden_size + HEADER_BYTES, link, link)
    expected = products_s + 3 * hop_s
    assert figures_of(simulate(run, calibration)).token_latency_s == pytest.approx(expected, 1e-5)


def test_one_device_sends_nothing():
    outcome = simulate(make_run("pipeline", size=1), free_calibration())
    assert [event.number("messages_sent") for event in counters(outcome)] == [0]


def test_more_devices_than_layers_are_refused():
    run = make_run("pipeline", size=3)
    with pytest.raises(ConfigError, match="3 devices, but the model has 2 layers"):
        simulate(replace(run, model=replace(run.model, num_layers=2)), free_calibration())


def test_shares_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="pipeline: shares: expected numbers > 0"):
        simulate(make_run("pipeline", options={"shares": [1, 0, 1, 1]}), free_calibration())
