from dataclasses import replace

import pytest

from baselines.simulate import simulate
from results.paper.cells.sim_compare import figures_of
from testbed.links.link import LinkSpec
from testbed.sim.base import SimDevice
from tests.comm.allreduces.traffic import traffic
from tests.testbed.sim.sims import free_calibration, make_run
from tpi.comm.allreduces.registry import allreduce_names
from tpi.comm.wire import HEADER_BYTES
from tpi.planner.memory import block_bytes
from tpi.planner.window_replay import BlockTimes, predict_step
from tpi.weights.shard import make_shard_plan


def counters(outcome):
    return [event.fields for _, event in outcome.events if event.name == "counters"]


@pytest.mark.parametrize("window", [1, 2, 3])
@pytest.mark.parametrize("disk_bps", [1e8, 1e9])
def test_with_free_links_a_step_is_that_of_the_planner(window, disk_bps):
    rate = 1e9
    calibration = free_calibration(products={"float32->float32": ((1, rate),)}, disk_request_s=1e-4)
    device = SimDevice(2.0, disk_read_bps=disk_bps)
    run = make_run(size=1, device=device, options={"window": window}, link=LinkSpec())
    blocks = block_bytes(run.model, make_shard_plan(run.model, 1), 0, "float32")
    times = [
        BlockTimes(n / rate / 2, 0.0, n / disk_bps + 1e-4) for b, n in blocks if b.kind != "embed"
    ]
    # Every step also reads one row of the embedding.
    row_s = 4096 / disk_bps + 1e-4
    times[-1] = replace(times[-1], after_s=row_s)
    expected = predict_step(times, window).step_s
    assert figures_of(simulate(run, calibration)).token_latency_s == pytest.approx(expected, 1e-5)


@pytest.mark.parametrize("algorithm", allreduce_names())
@pytest.mark.parametrize("wire_dtype", ["float32", "bfloat16"])
def test_a_request_sends_what_the_real_one_does(algorithm, wire_dtype):
    options = {"window": 2, "allreduce": algorithm, "wire_dtype": wire_dtype, "prefill_chunk": 5}
    run = make_run(options=options, prompt_tokens=8, new_tokens=3)
    found = counters(simulate(run, free_calibration()))
    width, item = run.model.hidden_size, 4 if wire_dtype == "float32" else 2
    for rank, fields in enumerate(found):
        sent = [_step(algorithm, rank, rows * width, item, run) for rows in (5, 3, 1, 1)]
        assert fields["messages_sent"] == sum(m for m, _ in sent)
        assert fields["wire_bytes_sent"] == sum(b for _, b in sent)
        assert fields["messages_sent_decode"] == sum(m for m, _ in sent[2:])
        assert fields["wire_bytes_sent_decode"] == sum(b for _, b in sent[2:])


def _step(algorithm, rank, count, item, run):
    """2 L - 1 allreduces, one reduce, one broadcast."""
    times = 2 * run.model.num_layers - 1
    messages, num_bytes = traffic(algorithm, rank, run.world_size, count, item)
    last = (3, 3 * (HEADER_BYTES + 4 * count)) if rank == 0 else (1, HEADER_BYTES + item * count)
    return times * messages + last[0], times * num_bytes + last[1]


def test_a_request_reads_what_the_real_one_does():
    run = make_run(options={"window": 2}, new_tokens=3)
    plan = make_shard_plan(run.model, 4)
    for rank, fields in enumerate(counters(simulate(run, free_calibration()))):
        blocks = block_bytes(run.model, plan, rank, "float32")
        streamed = sum(n for b, n in blocks if b.kind != "embed")
        rows = 4096 if rank == 0 else 0
        assert fields["disk_bytes_decode"] == 2 * (streamed + rows)
        assert fields["disk_bytes"] == 3 * streamed + (8 + 2) * rows


def test_resident_ranks_read_nothing_and_never_wait():
    for rank, fields in enumerate(counters(simulate(make_run("tpi-resident"), free_calibration()))):
        assert fields["wait_weights_s"] == 0
        assert (fields["disk_bytes_decode"] > 0) == (rank == 0)


def test_the_slowest_rank_counts_and_the_others_wait_for_it():
    devices = [SimDevice(1.0), SimDevice(0.25), SimDevice(1.0)]
    calibration = free_calibration(products={"float32->float32": ((1, 1e9),)})
    run = make_run("tpi-resident", size=3, link=LinkSpec())
    even = figures_of(simulate(run, calibration)).ttft_s
    slow = simulate(replace(run, devices=tuple(devices)), calibration)
    assert figures_of(slow).ttft_s > 3 * even
    waits = [fields["allreduce_s"] for fields in counters(slow)]
    assert waits[1] < min(waits[0], waits[2])


@pytest.mark.parametrize("disk_bps", [1e8, 1e11])
@pytest.mark.parametrize("keep_spans", [False, True])
def test_a_loader_takes_its_time_from_the_processor_that_computes(disk_bps, keep_spans):
    rate = {"products": {"float32->float32": ((1, 1e9),)}, "read_cpu_bps": 2e9}
    device = SimDevice(0.5, disk_read_bps=disk_bps)
    changes = {"size": 1, "device": device, "link": LinkSpec(), "keep_spans": keep_spans}
    run = make_run(options={"window": 2}, **changes)
    outcome = simulate(run, free_calibration(**rate))
    blocks = block_bytes(run.model, make_shard_plan(run.model, 1), 0, "float32")
    streamed = sum(n for b, n in blocks if b.kind != "embed")
    # Computing and reading take the half core together, unless the disk takes longer than both.
    expected = max(streamed / disk_bps, (streamed / 1e9 + streamed / 2e9) / 0.5)
    found = figures_of(outcome).token_latency_s or 0.0
    assert found == pytest.approx(expected, rel=0.02)
    (fields,) = counters(outcome)
    accounted = fields["compute_s"] + fields["wait_weights_s"]
    assert accounted == pytest.approx(4 * found, rel=0.05)


def test_a_prefill_chunk_without_logits_skips_the_head():
    calibration = free_calibration()
    device = SimDevice(1.0, disk_read_bps=1e8)
    whole, chunked = (
        simulate(make_run(device=device, options={"window": 2, "prefill_chunk": n}), calibration)
        for n in (512, 4)
    )
    run = make_run()
    blocks = block_bytes(run.model, make_shard_plan(run.model, 4), 0, "float32")
    layers = sum(n for b, n in blocks if b.kind in ("attn", "ffn"))
    first, second = counters(whole)[0]["disk_bytes"], counters(chunked)[0]["disk_bytes"]
    assert second - first == layers


def test_shares_may_leave_a_rank_without_work():
    run = make_run(size=3, options={"window": 2, "shares": [1, 1, 0]})
    found = counters(simulate(run, free_calibration()))
    assert [fields["disk_bytes"] > 0 for fields in found] == [True, True, False]
    assert found[2]["messages_sent"] > 0
