import pytest

from baselines.registry import simulate
from baselines.transformers.schedule import num_elements, request_bytes
from results.paper.cells.sim_compare import figures_of
from testbed.links.link import LinkSpec
from testbed.sim.base import SimDevice
from testbed.sim.calibration import load_calibration
from tests.testbed.sim.sims import free_calibration, make_run, tiny
from tpi.errors import ConfigError
from tpi.model_config import load_preset

GB = 1_000_000_000
GIB = 1 << 30
STORED = 2 * num_elements(tiny())[2]


def run_one(system, device, **changes):
    values = {"storage": "bfloat16", "size": 1, "link": LinkSpec(), **changes}
    return make_run(system, device=device, **values)


def base_bytes(system, **changes):
    """Anonymous memory beside the weights."""
    run = run_one(system, SimDevice(1.0), **changes)
    return free_calibration().library_anon_bytes + request_bytes(run)


def test_a_long_prompt_needs_its_cache_and_activations():
    changes = {"model": load_preset("llama2-3b"), "storage": "float16"}
    short, long = (
        simulate(
            run_one("transformers", SimDevice(1.0), prompt_tokens=n, **changes), load_calibration()
        )
        for n in (32, 4000)
    )
    # The checkpoint's own pages are beside what is made of them, until it is loaded.
    for found in (short, long):
        assert found.rss_hwm[0] == pytest.approx((13.3 + 6.4) * GIB, rel=0.02)
    assert long.anon_peak[0] == pytest.approx(16.1 * GIB, rel=0.03)
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


@pytest.mark.parametrize(
    ("options", "anon", "mapped"),
    [
        ({}, 0, 1),
        ({"low_cpu_mem_usage": False}, 1, 1),
        ({"mmap": False}, 2, 0),
        ({"low_cpu_mem_usage": False, "mmap": False}, 2, 0),
    ],
)
def test_other_ways_of_loading_hold_the_weights_twice(options, anon, mapped):
    changes = {"dtype": "bfloat16", "options": options}
    found = simulate(run_one("transformers", SimDevice(1.0), **changes), free_calibration())
    calibration = free_calibration()
    # A second copy is gone before a request needs memory.
    request = request_bytes(run_one("transformers", SimDevice(1.0), **changes))
    serves = calibration.library_anon_bytes + min(anon, 1) * STORED + request
    assert found.anon_peak[0] == max(calibration.library_anon_bytes + anon * STORED, serves)
    expected = calibration.library_bytes + (anon + mapped) * STORED
    assert found.rss_hwm[0] == expected + (0 if options else request)


def test_a_checkpoint_that_is_cast_is_mapped_beside_its_weights():
    # float32 of bfloat16: 6.96 GB were measured of 4.4 and 2.2 of weights.
    outcome = simulate(run_one("transformers", SimDevice(1.0)), free_calibration())
    assert outcome.rss_hwm[0] == free_calibration().library_bytes + 3 * STORED
    tight = SimDevice(1.0, memory=base_bytes("transformers") + 2 * STORED)
    assert simulate(run_one("transformers", tight), free_calibration()).rss_hwm[0] == tight.memory


def test_the_accelerate_of_old_writes_its_files_before_it_is_ready():
    quick, slow = (
        simulate(
            run_one("accelerate-2024", SimDevice(1.0, disk_read_bps=1e9, disk_write_bps=bps)),
            free_calibration(),
        )
        for bps in (1e9, 1e8)
    )
    ready = [
        next(event.t_ns for _, event in outcome.events if event.name == "ready") / 1e9
        for outcome in (quick, slow)
    ]
    assert ready[1] - ready[0] == pytest.approx(2 * STORED * (1 / 1e8 - 1 / 1e9))


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
