import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise

import pytest

from baselines.registry import all_systems, simulate
from results.paper.cells.sim_compare import figures_of
from results.paper.render.window_history import window_history
from results.records.measure import measure
from results.records.schema import PeakMemory, Repeat
from testbed.links.link import LinkSpec
from testbed.sim.base import SimDevice
from testbed.sim.calibration import load_calibration
from tests.results.examples import steps_of
from tests.testbed.sim.sims import free_calibration, make_run
from tpi.errors import ConfigError
from tpi.model_config import load_preset

SYSTEMS = tuple(system.name for system in all_systems() if system.simulator)
ONE = ("transformers", "transformers-window", "accelerate", "accelerate-2024")


def outcome_of(system, **changes):
    return simulate(make_run(system, size=1 if system in ONE else 4, **changes), load_calibration())


def repeat_of(outcome, world_size):
    events = tuple(replace(event, rank=rank) for rank, event in outcome.events)
    peaks = PeakMemory(rss_hwm=outcome.rss_hwm, anon_peak=outcome.anon_peak)
    return Repeat(0, "r0", "ok", "", (0,) * world_size, peaks, events)


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_system_says_what_a_real_run_says(system):
    outcome = outcome_of(system)
    size = len(outcome.rss_hwm)
    metrics = measure(repeat_of(outcome, size))
    found = figures_of(outcome)
    assert metrics.ttft_s == pytest.approx(found.ttft_s)
    assert metrics.token_latency_s == pytest.approx(found.token_latency_s)
    assert len(metrics.gaps_s) == 3
    assert metrics.load_s > 0
    assert metrics.peak_memory.rss_hwm == outcome.rss_hwm
    assert sum(metrics.time_share.values()) == pytest.approx(1, abs=0.02)
    stamps = [event.t_ns for _, event in outcome.events]
    assert stamps == sorted(stamps)
    ends = [rank for rank, event in outcome.events if event.name == "end"]
    assert sorted(ends) == list(range(size))


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_same_run_gives_the_same_answer(system):
    assert outcome_of(system) == outcome_of(system)


@pytest.mark.parametrize("system", ["tpi", "galaxy", "pipeline"])
def test_spans_lie_within_the_request_and_add_up(system):
    outcome = outcome_of(system, keep_spans=True, prompt_tokens=16)
    go = next(e.t_ns for _, e in outcome.events if e.name == "request")
    counters = {r: e for r, e in outcome.events if e.name == "counters"}
    for rank in range(4):
        events = [e for r, e in outcome.events if r == rank and e.name == "spans"]
        spans = [span for event in events for span in event.fields["spans"]]
        assert all(len(event.fields["spans"]) <= 500 for event in events)
        assert {name for name, *_ in spans} <= {"compute", "allreduce", "load", "wait"}
        assert all(end > max(start, go) for _, start, end, _ in spans)
        for name, counter in (("compute", "compute_s"), ("wait", "wait_weights_s")):
            total = sum(end - start for each, start, end, _ in spans if each == name)
            assert total / 1e9 == pytest.approx(counters[rank].number(counter), abs=1e-6)
        computing = sorted((s, e) for name, s, e, _ in spans if name in ("compute", "wait"))
        assert all(a_end <= b_start for (_, a_end), (b_start, _) in pairwise(computing))


@pytest.mark.parametrize("system", ["transformers", "accelerate", "accelerate-2024"])
def test_spans_of_a_library_add_up_block_by_block(system):
    outcome = outcome_of(system, keep_spans=True)
    rows = [r for _, e in outcome.events if e.name == "spans" for r in e.fields["spans"]]
    (counters,) = (e for _, e in outcome.events if e.name == "counters")
    stamps = {e.name: e.t_ns for _, e in outcome.events}
    for name, counter in (("compute", "compute_s"), ("wait", "wait_weights_s")):
        total = sum(end - start for each, start, end, _ in rows if each == name)
        assert total / 1e9 == pytest.approx(counters.number(counter), abs=1e-6)
    assert (min(r[1] for r in rows), max(r[2] for r in rows)) == pytest.approx(
        (stamps["request"], stamps["end"]), abs=10
    )
    assert all(a[2] <= b[1] for a, b in pairwise(rows))
    blocks = 2 * make_run().model.num_layers + 1
    assert len({label for *_, label in rows}) == blocks
    assert sum(name == "compute" for name, *_ in rows) == 4 * blocks
    assert any(name == "wait" for name, *_ in rows) == (system != "transformers")


@pytest.mark.parametrize("new_tokens", [1, 3])
def test_a_trace_of_any_length_shows_the_window_and_what_is_retained(new_tokens):
    plain = simulate(make_run("tpi", size=2, options={"window": 2}), load_calibration())
    options = {"window": 2, "memory_budget": plain.rss_hwm[0] + (32 << 20)}
    changes = {"options": options, "new_tokens": new_tokens, "keep_spans": True}
    outcome = simulate(make_run("tpi", size=2, **changes), load_calibration())
    ready = next(e for rank, e in outcome.events if e.name == "ready" and rank == 0)
    retained = int(ready.number("retained"))
    assert retained > 0
    assert ready.fields["window"] == 2
    assert ready.fields["predicted_peak_bytes"] == outcome.rss_hwm[0]
    steps = steps_of(window_history(repeat_of(outcome, 2)))
    assert min(len(labels) for _, labels in steps) >= retained
    assert max(len(labels) for _, labels in steps) <= retained + 2


@pytest.mark.parametrize("system", ["tpi", "galaxy", "pipeline", "transformers"])
def test_steps_are_passes(system):
    chunked = system != "transformers"
    options = {"prefill_chunk": 5} if chunked else {}
    outcome = outcome_of(system, prompt_tokens=12, new_tokens=4, options=options)
    steps = {e.fields["steps"] for _, e in outcome.events if e.name == "counters"}
    assert steps == {3 + 3 if chunked else 1 + 3}


def test_without_keep_spans_there_are_none():
    assert not [e for _, e in outcome_of("tpi").events if e.name == "spans"]


@pytest.mark.parametrize("system", ["transformers-tp", "llamacpp"])
def test_what_is_not_simulated_is_refused_with_what_is(system):
    with pytest.raises(ConfigError, match=f"{system} is not simulated; choose among tpi, tpi-res"):
        outcome_of(system)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"links": (LinkSpec(),)}, "4 devices and 1 links"),
        ({"new_tokens": 0}, "expected at least 1 each"),
        ({"devices": (SimDevice(0.0),) * 4}, "rank 0: cores and disk must be > 0"),
    ],
)
def test_a_run_that_makes_no_sense_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        simulate(replace(make_run(), **changes), load_calibration())


def test_one_token_has_no_latency():
    assert figures_of(outcome_of("tpi", new_tokens=1)).token_latency_s is None


def test_a_rank_over_its_limit_is_oom_with_the_numbers():
    device = SimDevice(1.0, memory=100 << 20)
    outcome = simulate(make_run(device=device), load_calibration())
    assert outcome.status == "oom"
    assert "rank 0 needs" in outcome.reason
    assert "100 MiB" in outcome.reason


@pytest.mark.parametrize("system", ["tpi", "pipeline"])
def test_what_is_left_out_is_said(system):
    assert outcome_of(system).notes == ()
    lossy = outcome_of(system, links=(LinkSpec(0.001, 1e8, 0.01),) * 4)
    assert "packet loss is not simulated" in lossy.notes[0]
    swapping = outcome_of(system, device=SimDevice(1.0, memory=100 << 20, swap=8 << 30))
    assert "every pass reads everything again" in swapping.notes[0]


@pytest.mark.parametrize("system", ["tpi", "tpi-resident", "galaxy", "pipeline"])
@pytest.mark.parametrize("prompt_tokens", [1, 16])
def test_a_pass_pages_in_what_a_rank_swaps(system, prompt_tokens):
    """One rank holds everything, so that no other hides its waiting."""
    device = SimDevice(2.0, memory=100 << 20, swap=8 << 30, disk_read_bps=1e8)
    calibration = free_calibration(swap_bps=1e7)
    changes = {"size": 1, "prompt_tokens": prompt_tokens, "link": LinkSpec()}
    found = simulate(make_run(system, device=device, **changes), calibration)
    plain = simulate(make_run(system, device=replace(device, memory=None), **changes), calibration)
    more_s = plain.anon_peak[0] / 1e7
    assert found.anon_peak[0] == found.rss_hwm[0] == 100 << 20
    for name in ("ttft_s", "token_latency_s"):
        took_s = getattr(figures_of(found), name) - getattr(figures_of(plain), name)
        assert took_s == pytest.approx(more_s, rel=1e-3), name


@pytest.mark.parametrize("system", ["tpi-resident", "galaxy", "pipeline"])
def test_a_rank_alone_pays_for_no_sums(system):
    def took_s(size, sum_call_s):
        run = make_run(system, size=size, link=LinkSpec())
        outcome = simulate(run, free_calibration(block_s=0.01, sum_call_s=sum_call_s))
        return figures_of(outcome).token_latency_s

    assert took_s(1, 0.1) == took_s(1, 0.0)
    # A pipeline has none however many it is of: one rank after another computes whole layers.
    sums_s = 0.0 if system == "pipeline" else 0.1
    assert took_s(2, 0.1) >= took_s(2, 0.0) + sums_s
    assert (took_s(2, 0.1) == took_s(2, 0.0)) == (system == "pipeline")


@pytest.mark.parametrize("system", ["tpi-resident", "galaxy", "pipeline"])
def test_ranks_that_swap_are_charged_alike_in_prefill_and_decode(system):
    device = SimDevice(2.0, memory=100 << 20, swap=8 << 30, disk_read_bps=1e8)
    run = make_run(system, device=device, prompt_tokens=16, link=LinkSpec())
    found = figures_of(simulate(run, free_calibration()))
    anon = simulate(replace(run, devices=(SimDevice(2.0),) * 4), free_calibration()).anon_peak
    # Layers one after another, on all ranks at once but for the head, which is the master's.
    passes_s = sum(anon) / 1e8 if system == "pipeline" else max(anon) / 1e8
    assert found.ttft_s == pytest.approx(passes_s, rel=0.1)
    assert found.token_latency_s == pytest.approx(passes_s, rel=0.1)


def large(size, algorithm, new_tokens):
    return replace(
        make_run("tpi", size=size, device=SimDevice(1.66, 8 << 30, 0, 700e6)),
        options={"window": 2, "allreduce": algorithm},
        model=load_preset("llama2-70b"), storage="bfloat16", new_tokens=new_tokens,
        links=(LinkSpec(0.002, 300e6),) * size,
    )  # fmt: skip


def test_eight_devices_of_70b_take_no_time():
    begin = time.process_time()
    simulate(large(8, "star", 32), load_calibration())
    assert time.process_time() - begin < 1.5


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("algorithm", ["star", "tree", "ring"])
def test_256_devices_take_under_a_minute_and_a_gibibyte(algorithm):
    code = (
        "import time\n"
        "from tests.baselines.test_simulate import large, simulate, load_calibration\n"
        "from tpi.program.procfs import peak_rss_bytes\n"
        f"simulate(large(256, {algorithm!r}, 20), load_calibration())\n"
        "print(time.process_time(), peak_rss_bytes())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, peak = map(float, done.stdout.split())
    assert seconds < 60
    assert peak < 1 << 30
