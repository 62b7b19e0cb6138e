"""Whole experiments with fake systems on the local testbed: records, checks, resuming, ending."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from msgspec import structs
from rich.console import Console

import harness.run.reference
import harness.run.runner
from baselines.registry import SYSTEMS
from harness.plan.plan import make_plan
from harness.progress.live import Live
from harness.run.annotate import disk_share
from harness.run.experiment import Experiment
from results.records.schema import Metrics, PeakMemory, RunRecord, Spread
from results.records.store import RunStore
from results.records.testbed_facts import Dilation
from testbed.limits.limits import DeviceLimits
from tests.harness.micro import GIB, HOST, MODEL, make_config
from tests.results.examples import as_calibration, as_config
from tpi.errors import ConfigError

pytestmark = pytest.mark.timeout(60)  # real processes, on whatever machine

PROMPT = (5, 6, 7, 8)
FAKE = ("-m", "tests.fake_system")


def fake(**behaviour):
    return (*FAKE, json.dumps(behaviour))


def experiment(tmp_path, tpi=None, transformers=None, host=HOST, out=None, **changes):
    """One with fake programs, on a model of kilobytes."""
    changes = {"model": {"name": "folder", "path": str(tmp_path)}, **changes}
    changes.setdefault("weights", {"dir": str(tmp_path / "weights"), "source": "synthetic"})
    config = make_config(tmp_path, **changes)
    plan = make_plan(config, MODEL, len(PROMPT), host)
    programs = {name: fake() for name in SYSTEMS}
    programs |= {"tpi": fake(**(tpi or {})), "transformers": fake(**(transformers or {}))}
    live = Live(Console(file=out or io.StringIO(), width=200))
    return Experiment(plan, host, PROMPT, live, programs)


def test_all_repeats_are_measured_checked_and_kept(tmp_path):
    done = experiment(tmp_path)
    assert done.pending == ["tpi", "transformers"]
    assert done.to_write > 0
    done.run()
    tpi, transformers = done.records
    assert (tpi.system, tpi.status, transformers.status) == ("tpi", "ok", "ok")
    assert tpi.tokens == (0, 1, 2, 3, 4)
    assert (tpi.check.kind, tpi.check.passed, tpi.check.agreement) == ("exact", True, 1.0)
    assert tpi.metrics is not None
    assert tpi.metrics.token_latency_s is not None
    assert (tpi.metrics.token_latency_s.n, tpi.num_ok) == (2, 2)
    assert tpi.metrics.disk_bytes_per_token == 500.0
    assert len(tpi.metrics.peak_memory.rss_hwm) == 2
    assert tpi.config.options == {
        "window": 2, "memory_budget": None, "allreduce": "star", "wire_dtype": "float32",
        "shares": None, "prefill_chunk": 512,
    }  # fmt: skip
    assert done.exit_status == 0
    store = RunStore(tmp_path / "runs")
    assert store.read(tpi.run_id) == tpi
    assert [r.request_id for r in store.repeats(tpi)] == ["r0", "r0"]


def test_systems_alternate(tmp_path):
    out = io.StringIO()
    experiment(tmp_path, out=out).run()
    starts = [line.split(",")[0] for line in out.getvalue().splitlines() if line.endswith("...")]
    assert starts[-4:] == ["transformers", "tpi", "tpi", "transformers"]


def test_a_finished_run_is_not_redone_unless_forced(tmp_path):
    first = experiment(tmp_path)
    first.run()
    out = io.StringIO()
    second = experiment(tmp_path, out=out)
    assert second.pending == []
    assert second.to_write == 0
    second.run()
    assert second.records == first.records
    assert "measured before" in out.getvalue()
    assert "force=true" in out.getvalue()
    forced = experiment(tmp_path, force=True, repeats=1)
    forced.run()
    assert [r.run_id for r in forced.records] == [f"{r.run_id}-2" for r in first.records]
    assert experiment(tmp_path).records[0].run_id == forced.records[0].run_id


def test_more_repeats_are_added(tmp_path):
    experiment(tmp_path, repeats=1).run()
    more = experiment(tmp_path, repeats=3)
    more.run()
    assert [r.num_ok for r in more.records] == [3, 3]


def test_one_more_system_or_another_folder_of_records_voids_nothing(tmp_path):
    alone = experiment(tmp_path, systems={"transformers": {}})
    both = experiment(tmp_path)
    assert alone.records[0].run_id == both.records[1].run_id
    fewer = experiment(tmp_path, results_dir=str(tmp_path / "other"), repeats=5)
    assert [r.run_id for r in fewer.records] == [r.run_id for r in both.records]


@pytest.mark.parametrize(
    "changes",
    [
        {"systems": {"tpi": {"window": 3}, "transformers": {}}},
        {"workload": {"new_tokens": 6}},
        {"devices": 3},
        {"dtype": "bfloat16"},
        {"device": {"threads": 2}},
        {"trace": True},
    ],
    ids=str,
)
def test_what_decides_the_numbers_is_another_run(tmp_path, changes):
    before, after = experiment(tmp_path), experiment(tmp_path, **changes)
    assert before.records[0].run_id != after.records[0].run_id


def test_wrong_tokens_are_never_a_timing(tmp_path):
    done = experiment(tmp_path, tpi={"tokens": [0, 1, 9, 3, 4]})
    done.run()
    tpi, transformers = done.records
    assert (tpi.status, tpi.metrics, transformers.status) == ("wrong_output", None, "ok")
    assert tpi.check.first_difference == 2
    assert tpi.reason == "token 3 is 9, the reference has 2"
    assert len(tpi.samples) == 1  # a failure is not repeated
    assert done.exit_status == 1


def test_a_crash_of_one_leaves_the_other(tmp_path):
    done = experiment(tmp_path, tpi={"misdeed": "die", "rank": 1})
    done.run()
    tpi, transformers = done.records
    assert (tpi.status, tpi.reason) == ("crashed", "rank 1: ended early with signal 9")
    assert (transformers.status, transformers.num_ok) == ("ok", 2)
    assert done.exit_status == 1
    again = experiment(tmp_path, tpi={"misdeed": "die", "rank": 1})
    assert again.pending == []  # a failure is a result; force=true tries again


def test_reference_program_is_asked_once_where_transformers_does_not_run(tmp_path, monkeypatch):
    calls = tmp_path / "calls"
    monkeypatch.setattr(harness.run.reference, "_MODULE", "tests.fake_reference")
    monkeypatch.setenv("FAKE_REFERENCE_CALLS", str(calls))
    for repeats in (2, 3):
        done = experiment(tmp_path, systems={"tpi": {}}, repeats=repeats)
        done.run()
        assert done.records[0].check.passed is True
    assert len(calls.read_text().splitlines()) == 1


def test_reference_that_fails_makes_the_run_invalid_and_it_is_tried_again(tmp_path, monkeypatch):
    monkeypatch.setattr(harness.run.reference, "_MODULE", "tests.no_such")
    done = experiment(tmp_path, systems={"tpi": {}}, repeats=1)
    done.run()
    record = done.records[0]
    assert (record.status, record.metrics, done.exit_status) == ("invalid", None, 1)
    assert (record.check.kind, record.check.passed) == ("exact", None)
    assert "No module named tests.no_such" in record.reason
    monkeypatch.setattr(harness.run.reference, "_MODULE", "tests.fake_reference")
    again = experiment(tmp_path, systems={"tpi": {}}, repeats=1)
    assert again.pending == ["tpi"]
    again.run()
    assert (again.records[0].run_id, again.records[0].status) == (f"{record.run_id}-2", "ok")


def test_planned_lack_of_a_check_is_a_timing_with_the_reason(tmp_path, monkeypatch):
    monkeypatch.setattr("harness.plan.plan._plan_check", lambda *_: ("none", "too large"))
    done = experiment(tmp_path, repeats=1)
    done.run()
    assert [r.status for r in done.records] == ["ok", "ok"]
    assert {(r.check.kind, r.check.detail) for r in done.records} == {("none", "too large")}
    assert done.exit_status == 0


def test_references_source_decides_where_its_answer_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(harness.run.reference, "_MODULE", "tests.fake_reference")
    for digest in ("a", "b", "b"):
        monkeypatch.setattr(harness.run.reference, "reference_digest", lambda digest=digest: digest)
        experiment(tmp_path, systems={"tpi": {}}, repeats=1, force=True).run()
    assert len(list((tmp_path / "runs" / "references").iterdir())) == 2


def test_bounded_check_feeds_the_tokens_to_the_reference(tmp_path, monkeypatch):
    monkeypatch.setattr(harness.run.reference, "_MODULE", "tests.fake_reference")
    done = experiment(tmp_path, systems={"tpi": {}}, repeats=1, dtype="bfloat16")
    done.run()
    check = done.records[0].check
    assert (check.kind, check.passed, check.agreement) == ("bounded", True, 1.0)


def test_two_layer_check_comes_first_and_its_weights_go(tmp_path, monkeypatch):
    monkeypatch.setattr(harness.run.reference, "_MODULE", "tests.fake_reference")
    monkeypatch.setattr("harness.plan.plan._plan_check", lambda *_: ("two_layer", "too large"))
    out = io.StringIO()
    done = experiment(tmp_path, systems={"tpi": {}}, repeats=1, out=out)
    done.run()
    check = done.records[0].check
    assert (check.kind, check.passed) == ("two_layer", True)
    assert [p for p in (tmp_path / "weights").iterdir() if "two-layers" in p.name] == []
    lines = out.getvalue().splitlines()
    assert lines.index("check of tpi: two layers ...") < lines.index("tpi, repeat 1 ...")
    again = io.StringIO()
    experiment(tmp_path, systems={"tpi": {}}, repeats=2, out=again).run()
    assert "check of tpi: two layers ..." not in again.getvalue()


def test_two_layer_check_that_fails_measures_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(harness.run.reference, "_MODULE", "tests.fake_reference")
    monkeypatch.setattr("harness.plan.plan._plan_check", lambda *_: ("two_layer", "too large"))
    done = experiment(tmp_path, tpi={"tokens": [9] * 8}, systems={"tpi": {}})
    done.run()
    assert (done.records[0].status, done.records[0].samples) == ("wrong_output", ())
    assert "token 1 is 9" in done.records[0].reason


def test_two_layer_check_is_of_all_but_the_reference(tmp_path, monkeypatch):
    monkeypatch.setattr(harness.run.reference, "_MODULE", "tests.fake_reference")
    monkeypatch.setattr("harness.plan.plan._plan_check", lambda *_: ("two_layer", "too large"))
    out = io.StringIO()
    systems: dict[str, object] = {"transformers": {}, "tpi": {}, "pipeline": {}}
    done = experiment(tmp_path, systems=systems, devices=3, repeats=1, out=out)
    done.run()
    kinds = {r.system: r.check.kind for r in done.records}
    assert kinds == {"transformers": "none", "tpi": "two_layer", "pipeline": "two_layer"}
    assert {r.status for r in done.records} == {"ok"}
    assert "check of pipeline: the same shape with two layers gives" in out.getvalue()
    assert [p for p in (tmp_path / "weights").iterdir() if "two-layers" in p.name] == []


def test_two_layer_check_that_fails_leaves_the_reference(tmp_path, monkeypatch):
    monkeypatch.setattr(harness.run.reference, "_MODULE", "tests.fake_reference")
    monkeypatch.setattr("harness.plan.plan._plan_check", lambda *_: ("two_layer", "too large"))
    done = experiment(tmp_path, tpi={"tokens": [9] * 8}, repeats=1)
    done.run()
    tpi, transformers = done.records
    assert (tpi.status, tpi.samples) == ("wrong_output", ())
    assert (transformers.status, transformers.check.passed) == ("ok", None)
    assert transformers.check.kind == "none"
    assert "the reference implementation itself; too large" in transformers.check.detail
    assert done.exit_status == 1


def test_two_layer_check_that_breaks_is_invalid_and_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr("harness.plan.plan._plan_check", lambda *_: ("two_layer", "too large"))
    monkeypatch.setattr(harness.run.reference, "_MODULE", "tests.no_such")
    done = experiment(tmp_path, systems={"tpi": {}}, repeats=1)
    done.run()
    record = done.records[0]
    assert (record.status, record.samples, done.exit_status) == ("invalid", (), 1)
    assert "No module named tests.no_such" in record.reason
    monkeypatch.setattr(harness.run.reference, "_MODULE", "tests.fake_reference")
    again = experiment(tmp_path, systems={"tpi": {}}, repeats=1)
    again.run()
    assert (again.records[0].status, again.exit_status) == ("ok", 0)


def test_two_layer_check_in_16_bit_is_within_a_bound(tmp_path, monkeypatch):
    monkeypatch.setattr(harness.run.reference, "_MODULE", "tests.fake_reference")
    monkeypatch.setattr("harness.plan.plan._plan_check", lambda *_: ("two_layer", "too large"))
    done = experiment(tmp_path, systems={"tpi": {}}, repeats=1, dtype="bfloat16")
    done.run()
    assert (done.records[0].check.kind, done.records[0].check.passed) == ("two_layer_bounded", True)


def test_finished_run_is_kept_while_memory_is_short(tmp_path):
    first = experiment(tmp_path, repeats=1)
    first.run()
    short = replace(HOST, available_memory=300 << 20)
    assert experiment(tmp_path, repeats=1, host=short).records == first.records
    more = experiment(tmp_path, repeats=2, host=short)
    assert [r.status for r in more.records] == ["infeasible", "infeasible"]
    assert more.pending == []
    assert experiment(tmp_path, repeats=1).records == first.records
    later = experiment(tmp_path, repeats=2)
    assert [r.run_id for r in later.records] == [r.run_id for r in first.records]


def test_what_cannot_fit_is_infeasible_and_not_started(tmp_path):
    host = replace(HOST, available_memory=300 << 20)
    done = experiment(tmp_path, host=host)
    done.run()
    assert [r.status for r in done.records] == ["infeasible", "infeasible"]
    assert "the limit is 270 MiB" in done.records[1].reason
    assert done.exit_status == 0
    assert experiment(tmp_path, host=host).records == done.records
    assert experiment(tmp_path).pending == ["tpi", "transformers"]  # memory was given back


def test_interrupt_is_recorded_and_the_rest_goes_on(tmp_path, monkeypatch):
    done = experiment(tmp_path)
    count = []

    def run_repeat(*args):
        count.append(1)
        if len(count) == 2:
            raise KeyboardInterrupt
        return real(*args)

    real = harness.run.runner.run_repeat
    monkeypatch.setattr("harness.run.experiment.run_repeat", run_repeat)
    with pytest.raises(KeyboardInterrupt):
        done.run()
    assert [r.status for r in done.records] == ["interrupted", "interrupted"]
    assert done.records[1].num_ok == 1
    later = experiment(tmp_path)
    later.run()
    assert [(r.status, r.num_ok) for r in later.records] == [("ok", 2), ("ok", 2)]
    assert later.records[1].run_id == done.records[1].run_id


def test_interrupted_run_is_finished_where_fewer_repeats_are_asked_for(tmp_path):
    first = experiment(tmp_path, repeats=1)
    first.run()
    store = RunStore(tmp_path / "runs")
    for record in first.records:
        store.write(structs.replace(record, status="interrupted", reason="repeats to go: 4"))
    later = experiment(tmp_path, repeats=1)
    assert later.pending == []
    assert later.records == first.records
    assert store.read(first.records[0].run_id).status == "ok"


def test_full_disk_is_found_out_before_anything_is_written(tmp_path):
    done = experiment(tmp_path, host=replace(HOST, free_disk=1 << 20))
    with pytest.raises(ConfigError, match=r"weights\.dir: .* needs .* more, 1 MiB are free"):
        done.run()
    assert not list((tmp_path / "weights").glob("*/n2"))


def test_results_dir_that_cannot_be_written_is_found_out_first(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="results_dir"):
        experiment(tmp_path, results_dir=str(tmp_path / "file" / "runs"))


def test_disk_share_compares_with_the_best_rate():
    spread = Spread(2.0, 2.0, 2.0, 1)
    metrics = Metrics(spread, 0.0, spread, spread, PeakMemory(), 1.5e9, None, None, {})
    record = RunRecord(
        "x",
        "tpi",
        "ok",
        metrics=metrics,
        calibration=as_calibration({"disk_read_bps": [0.5e9, 1e9]}),
    )
    assert "streamed 0.75 GB/s, 75%" in str(disk_share(record))
    slower = structs.replace(record.calibration, dilation=Dilation(3.0))
    assert "streamed 0.25 GB/s, 25%" in str(disk_share(structs.replace(record, calibration=slower)))
    assert disk_share(structs.replace(record, calibration=as_calibration({}))) is None


def test_disk_share_compares_with_the_devices_own_disks_where_they_are_limited():
    spread = Spread(2.0, 2.0, 2.0, 1)
    metrics = Metrics(spread, 0.0, spread, spread, PeakMemory(), 1.5e9, None, None, {})
    limits = [{"read_bps": 100_000_000}, {"read_bps": 200_000_000}, {"read_bps": 400_000_000}]
    calibration = as_calibration(
        {"disk_read_bps": [3e9], "dilation": {"factor": 5.0}, "limits": limits}
    )
    config = as_config({"predicted_peak_bytes": [1, 2]})
    record = RunRecord("x", "tpi", "ok", metrics=metrics, calibration=calibration, config=config)
    text = "streamed 0.75 GB/s, 50% of what the disks of 2 devices may give (1.50 GB/s)"
    assert str(disk_share(record)) == text
    calibration = structs.replace(calibration, limits=(DeviceLimits(),) * 3)
    found = disk_share(structs.replace(record, calibration=calibration))
    assert "0.15 GB/s, 5% of what the disk" in str(found)


def test_budget_of_memory_is_in_the_plan_of_the_record(tmp_path):
    done = experiment(tmp_path, repeats=1)
    done.run()
    config = done.records[0].config
    peaks = config.predicted_peak_bytes
    assert peaks
    assert all(100 << 20 < peak < GIB for peak in peaks)
    assert Path(str(config.results_dir)).is_dir()


def test_what_a_system_was_asked_to_do_alone_stands_in_its_notes(tmp_path):
    systems: dict[str, object] = {
        "transformers": {"dtype": "bfloat16", "threads": 2},
        "tpi": {},
        "llamacpp": {"quantization": "q4_0"},
    }
    records = experiment(tmp_path, systems=systems).records
    notes = {r.system: tuple(map(str, r.notes)) for r in records}
    assert notes["transformers"] == (
        "dtype: bfloat16, of the run: float32",
        "threads: 2, of the run: 1",
    )
    assert notes["tpi"] == ()
    text = "GGUF file of q4_0; its tokens are checked against the file's own numbers"
    assert notes["llamacpp"] == (text,)
