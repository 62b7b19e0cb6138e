import pytest

from testbed.link import LinkSpec
from testbed.sim.base import SimDevice
from testbed.sim.calibration import load_calibration
from testbed.sim.compare import figures_of
from testbed.sim.library import num_elements, request_bytes
from testbed.sim.simulate import simulate
from tests.testbed.sim.sims import free_calibration, make_run, tiny
from tpi.config import load_preset
from tpi.errors import ConfigError

GB = 1_000_000_000
GIB = 1 << 30
STORED = 2 * num_elements(tiny())[2]


def run_one(system, device, **changes):
    values = {"storage": "bfloat16", "size": 1, "link": LinkSpec(), **changes}
    return make_run(system, device=device, **values)


def base_bytes(system, **changes):
    """Anonymous memory beside the weights."""
    run = run_one(system, SimDevice(1.0), **changes)
    return free_calibration().library_anon_bytes + request_bytes(run, run.dtype)


def test_a_long_prompt_needs_its_cache_and_activations():
    changes = {"model": load_preset("llama2-3b"), "storage": "float16"}
    short, long = (
        simulate(
            run_one("transformers", SimDevice(1.0), prompt_tokens=n, **changes), load_calibration()
        )
        for n in (32, 4000)
    )
    assert short.rss_hwm[0] == pytest.approx(13.3 * GIB, rel=0.02)
    assert long.rss_hwm[0] == pytest.approx(16.2 * GIB, rel=0.03)
    more = long.anon_peak[0] - short.anon_peak[0]
    cache = 2 * 26 * 3200 * 4 * (4000 - 32)
    assert cache < more < 1.4 * cache


@pytest.mark.parametrize("system", ["accelerate", "transformers"])
def test_no_more_is_in_memory_than_the_device_has(system):
    device = SimDevice(1.0, memory=8 * GIB, swap=64 * GIB)
    changes = {"model": load_preset("llama2-7b"), "storage": "float16"}
    outcome = simulate(run_one(system, device, **changes), load_calibration())
    assert outcome.rss_hwm == (8 * GIB,)
    assert outcome.anon_peak[0] <= 8 * GIB
    (found,) = (event for _, event in outcome.events if event.name == "counters")
    assert found.number("rss_hwm") == 8 * GIB


def test_elements_are_those_of_the_model():
    layer, head, total = num_elements(tiny())
    assert (layer, head) == (768 * 64 * (2 * 12 + 2 * 4) + 3 * 768 * 2048, 512 * 768)
    assert total == 8 * layer + 2 * head
    assert num_elements(tiny(tied_embeddings=True))[2] == 8 * layer + head


def test_transformers_takes_the_weights_once_a_token():
    layer, head, _ = num_elements(tiny())
    calibration = free_calibration(linear={"float32": ((1, 1e9),)}, library_step_s=0.5)
    found = figures_of(simulate(run_one("transformers", SimDevice(2.0)), calibration))
    expected = (4 * (8 * layer + head) / 1e9 + 0.5) / 2
    assert found.token_latency_s == pytest.approx(expected)


def test_weights_that_fit_neither_memory_nor_swap_are_oom():
    base = base_bytes("transformers")
    short = SimDevice(1.0, memory=base + STORED, swap=STORED - 1)
    outcome = simulate(run_one("transformers", short), free_calibration())
    assert (outcome.status, outcome.events) == ("oom", ())
    assert outcome.reason.startswith("rank 0 needs ")
    enough = SimDevice(1.0, memory=base + STORED, swap=STORED)
    assert simulate(run_one("transformers", enough), free_calibration()).status == "ok"


def test_what_swap_holds_is_paged_in_by_every_pass():
    base = base_bytes("transformers")
    device = SimDevice(1.0, memory=base + STORED, swap=GB, disk_read_bps=1e8)
    outcome = simulate(run_one("transformers", device), free_calibration())
    assert figures_of(outcome).token_latency_s == pytest.approx((base + 2 * STORED) / 1e8)
    assert outcome.notes


def test_views_of_files_need_no_memory_but_are_read_again_where_they_do_not_fit():
    changes = {"dtype": "bfloat16"}
    base = base_bytes("transformers", **changes)
    small = SimDevice(1.0, memory=base + STORED - 1, disk_read_bps=1e8)
    outcome = simulate(run_one("transformers", small, **changes), free_calibration())
    assert (outcome.status, outcome.anon_peak) == ("ok", (base,))
    assert figures_of(outcome).token_latency_s == pytest.approx(STORED / 1e8)
    large = SimDevice(1.0, memory=base + STORED, disk_read_bps=1e8)
    fast = simulate(run_one("transformers", large, **changes), free_calibration())
    assert figures_of(fast).token_latency_s == 0


def test_the_way_of_old_holds_the_weights_twice():
    device = SimDevice(1.0)
    now, then = (
        simulate(run_one("transformers", device, options=options), free_calibration())
        for options in ({}, {"low_cpu_mem_usage": False})
    )
    # The second copy is gone before a request needs memory.
    request = request_bytes(run_one("transformers", device), "float32")
    assert then.rss_hwm[0] - now.rss_hwm[0] == 2 * STORED - request


@pytest.mark.parametrize("disk_bps", [1e7, 1e10])
def test_accelerate_blocks_for_what_is_slower_disk_or_conversion(disk_bps):
    calibration = free_calibration(cast_bps={"bfloat16->float32": 1e8})
    memory = calibration.library_anon_bytes + STORED // 2
    device = SimDevice(2.0, memory=memory, disk_read_bps=disk_bps)
    outcome = simulate(run_one("accelerate", device), calibration)
    expected = max(STORED / disk_bps, STORED / 1e8 / 2)
    assert figures_of(outcome).token_latency_s == pytest.approx(expected)
    (found,) = (event for _, event in outcome.events if event.name == "counters")
    assert found.number("wait_weights_s") == pytest.approx(4 * expected)
    assert found.number("disk_bytes_decode") == 3 * STORED


def test_accelerate_reads_nothing_that_is_cached():
    outcome = simulate(run_one("accelerate", SimDevice(1.0, memory=4 * GB)), free_calibration())
    (found,) = (event for _, event in outcome.events if event.name == "counters")
    assert found.number("disk_bytes") == 0


def test_accelerate_keeps_what_it_may_and_moves_the_rest():
    calibration = free_calibration(cast_bps={"bfloat16->float32": 1e8})
    layer = max(num_elements(tiny())[:2])
    most = 2 * STORED + 4 * layer
    times = [
        figures_of(
            simulate(run_one("accelerate", SimDevice(1.0), options={"max_memory": n}), calibration)
        ).ttft_s
        for n in (None, most // 2, most)
    ]
    assert times[0] > times[1] > times[2] == 0


def test_accelerate_of_2024_loads_everything_first():
    base = free_calibration().library_anon_bytes
    device = SimDevice(1.0, memory=base + 2 * STORED - 1)
    assert simulate(run_one("accelerate-2024", device), free_calibration()).status == "oom"
    assert simulate(run_one("accelerate", device), free_calibration()).status == "ok"


def test_a_library_takes_one_device():
    with pytest.raises(ConfigError, match="accelerate: takes one device, got 2"):
        simulate(make_run("accelerate", size=2), free_calibration())
