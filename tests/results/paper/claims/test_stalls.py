import pytest
from msgspec import structs

from results.paper.claims.stalls import Prediction, layer_times, predict, predict_run
from results.records.schema import RunRecord
from tests.results.claim_books import known
from tests.results.examples import as_calibration, as_config, make_repeat
from tpi.model_config import load_preset
from tpi.planner.memory import block_bytes
from tpi.planner.propositions import LayerTimes
from tpi.program.events import Event
from tpi.weights.shard import make_shard_plan

LIMITS = [{"read_bps": 1_000_000}, {"read_bps": 2_000_000}]
TINY = load_preset("tiny")
CONFIG = {"model": {"name": "tiny"}, "options": {"window": 2}}


def record(config=CONFIG, **calibration):
    return RunRecord(
        "tpi-1", "tpi", "ok", config=as_config(config), calibration=as_calibration(calibration)
    )


def test_layer_times_are_those_of_a_mean_device():
    times = known(layer_times(TINY, [make_repeat()], 1e6))  # three steps of two ranks
    layers, sizes = TINY.num_layers, dict.fromkeys(("attn", "ffn"), 0)
    for block, size in block_bytes(TINY, make_shard_plan(TINY, 2), 1, TINY.dtype):
        if block.kind in sizes and block.index == 0:
            sizes[block.kind] = size
    assert (times.attn_s + times.ffn_s) * layers == pytest.approx(0.2 / 3)
    assert times.allreduce_s * 2 * layers == pytest.approx(0.1 / 3)
    assert times.ffn_s / times.attn_s == pytest.approx(sizes["ffn"] / sizes["attn"])
    assert times.ffn_load_s == pytest.approx(sizes["ffn"] / 1e6)


def test_layer_times_are_undilated():
    plain, dilated = (known(layer_times(TINY, [make_repeat(dilation=d)], 1e6)) for d in (1.0, 4.0))
    assert dilated.allreduce_s == pytest.approx(plain.allreduce_s / 4)
    assert dilated.ffn_load_s == plain.ffn_load_s


def test_without_counters_there_are_no_times():
    repeat = make_repeat()
    kept = [e for e in repeat.events if e.name != "counters"]
    assert layer_times(TINY, [structs.replace(repeat, events=tuple(kept))], 1e6) is None
    bare = [*kept, *(Event("counters", 9, {"id": "m", "rank": r}, r) for r in (0, 1))]
    assert layer_times(TINY, [structs.replace(repeat, events=tuple(bare))], 1e6) is None


def test_slow_loads_stall_and_fast_ones_do_not():
    slow = predict(LayerTimes(0.01, 0.01, 0.01, 0.1, 0.1), 4, 2)
    assert (slow.is_loose, slow.is_tight, slow.period) == (False, False, None)
    assert slow.replay_share > 0.5
    fast = predict(LayerTimes(0.01, 0.01, 0.01, 0.001, 0.001), 4, 2)
    assert (fast.is_loose, fast.is_tight, fast.period) == (True, True, 4)
    assert fast.published_share == fast.replay_share == 0


def test_retention_names_the_fewest_resident_blocks_that_do():
    # An attention block alone hides; every other FFN block must be resident.
    found = predict(LayerTimes(0.01, 0.01, 0.0, 0.01, 0.02), 8, 2)
    assert found.period == 2
    assert "one FFN block of every 2 resident" in str(found)


def test_predict_run_needs_a_rate_of_the_disk():
    found = predict_run(record(limits=LIMITS, dilation={"factor": 2.0}), [make_repeat()])
    assert isinstance(found, Prediction)
    assert found.times.ffn_load_s == known(layer_times(TINY, [make_repeat()], 2e6)).ffn_load_s
    for unknown in ({}, {"limits": [{"read_bps": None}]}):
        assert predict_run(record(**unknown), [make_repeat()]) == "no disk's rate was held"


def test_loads_are_of_the_dtype_that_the_run_stored():
    found = {
        dtype: predict_run(
            record({**CONFIG, "weights": {"dtype": dtype}}, limits=LIMITS), [make_repeat()]
        )
        for dtype in ("auto", "float32", "bfloat16")
    }
    loads = {d: f.times.ffn_load_s for d, f in found.items() if isinstance(f, Prediction)}
    assert loads["float32"] == pytest.approx(2 * loads["bfloat16"], rel=0.1)
    assert loads["auto"] == loads[TINY.dtype]


@pytest.mark.parametrize(
    ("options", "model", "reason"),
    [
        ({"memory_budget": 1 << 30}, {}, "retains blocks"),
        ({"shares": [2, 1]}, {}, "uneven shares"),
        ({"window": "all"}, {}, "no number of blocks"),
        ({}, {"path": "/models/x"}, "of presets"),
        ({}, {"name": "mine"}, "of presets"),
    ],
)
def test_a_run_that_the_propositions_do_not_fit_has_no_prediction(options, model, reason):
    config = {"model": {"name": "tiny", **model}, "options": {"window": 2, **options}}
    found = predict_run(record(config, limits=LIMITS), [make_repeat()])
    assert reason in str(found)
    assert isinstance(found, str)
