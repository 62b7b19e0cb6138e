from dataclasses import replace

import numpy as np
import pytest

from baselines.galaxy import tiles as real
from baselines.galaxy.schedule import make_tiles, splits_rows
from baselines.simulate import simulate
from results.paper.cells.sim_compare import figures_of
from testbed.links.link import LinkSpec
from tests.baselines.galaxy.traffic import traffic
from tests.testbed.sim.sims import free_calibration, make_run, tiny
from tpi.weights.shard import make_shard_plan


@pytest.mark.parametrize("weights", [None, (3, 0, 1, 2), (0, 0, 1, 0)])
@pytest.mark.parametrize("rows", [1, 3, 4, 7, 50])
def test_tiles_are_those_of_galaxy(weights, rows):
    plan = make_shard_plan(tiny(), 4, weights)
    assert make_tiles(plan, rows) == real.make_tiles(plan, rows)
    assert splits_rows(plan, rows) == real.splits_rows(plan, rows)


@pytest.mark.parametrize("shares", [None, (3, 0, 1, 2)])
@pytest.mark.parametrize("prompt", [2, 4, 9])
def test_a_request_sends_what_galaxy_sends(shares, prompt):
    run = make_run("galaxy", options={"shares": shares}, prompt_tokens=prompt, new_tokens=2)
    events = simulate(run, free_calibration()).events
    plan = make_shard_plan(run.model, 4, shares)
    for _, event in events:
        if event.name != "counters":
            continue
        rank = int(event.number("rank"))
        sent = [
            traffic(plan, rank, rows, run.model.num_layers, run.model.hidden_size)
            for rows in (prompt, 1)
        ]
        assert event.number("messages_sent") == sum(m for m, _ in sent)
        assert event.number("wire_bytes_sent") == sum(b for _, b in sent)
        assert event.number("messages_sent_decode") == sent[1][0]


def ttft_s(overlap, link, **costs):
    run = make_run("galaxy", options={"overlap": overlap}, prompt_tokens=64, link=link)
    return figures_of(simulate(run, free_calibration(**costs))).ttft_s


def test_overlap_hides_the_shorter_of_transfer_and_product():
    link = LinkSpec(0.0005, 500e6)
    costs = {"products": {"float32->float32": ((1, 1e9), (65, 1e8))}}
    apart, together = ttft_s(False, link, **costs), ttft_s(True, link, **costs)
    only_link, only_products = ttft_s(True, link), ttft_s(True, LinkSpec(), **costs)
    assert max(only_link, only_products) <= together < apart
    assert apart <= only_link + only_products + 1e-6


def test_without_links_a_prefill_takes_its_products():
    rate = 1e9
    run = make_run("galaxy", prompt_tokens=8, new_tokens=1, link=LinkSpec())
    run = replace(run, model=replace(run.model, num_kv_heads=12))
    calibration = free_calibration(products={"float32->float32": ((1, rate),)})
    outcome = simulate(run, calibration)
    # A tile of rows takes as long as all of them here; norms count as matrices to a part in 1000.
    found = next(e for r, e in outcome.events if r == 1 and e.name == "counters")
    plan = make_shard_plan(run.model, 4)
    share = plan.shares[1]
    attn = 4 * 4 * share.local_num_heads * 64 * 768
    ffn = 3 * 4 * share.local_ffn_size * 768
    passes = np.array([run.model.num_layers * 4 * (attn + ffn), -3 * attn * 3 / 4])
    assert found.number("compute_s") == pytest.approx(passes.sum() / rate, rel=0.01)


def test_decode_is_a_ring_with_all_weights_in_memory():
    galaxy = simulate(make_run("galaxy", new_tokens=5), free_calibration(send_s=1e-5))
    ring = simulate(
        make_run("tpi-resident", options={"allreduce": "ring"}, new_tokens=5),
        free_calibration(send_s=1e-5),
    )
    assert figures_of(galaxy).token_latency_s == pytest.approx(figures_of(ring).token_latency_s)
    assert galaxy.rss_hwm == ring.rss_hwm
