"""Counters from records, module lists and spans, and their comparison."""

from dataclasses import replace

import pytest

from harness.regression.counters import (
    PACKAGES,
    TOLERANCES,
    Counts,
    compare_counters,
    judge_counts,
    packages_of,
    run_counts,
)
from harness.regression.tree import ProgramError
from results.records.measure import measure, summarize
from results.records.schema import PeakMemory, RunRecord
from tests.harness.regression.trees import make_tree
from tests.results.examples import MIB, make_repeat

RECORD = RunRecord("tpi-0", "tpi", "ok", metrics=summarize([measure(make_repeat())]))


def test_counts_of_a_record():
    assert run_counts(RECORD, 2) == {
        "tpi, 2 devices: disk bytes per token": 600,
        "tpi, 2 devices: wire bytes per token": 60,
        "tpi, 2 devices: messages per token": 20,
        "tpi, 2 devices: peak anonymous memory": 150 * MIB,
    }


def test_what_a_record_does_not_count_is_not_zero():
    assert RECORD.metrics is not None
    metrics = replace(
        RECORD.metrics, messages_per_token=None, peak_memory=PeakMemory(anon_peak=(None, None))
    )
    names = {name.rpartition(": ")[2] for name in run_counts(replace(RECORD, metrics=metrics), 2)}
    assert names == {"disk bytes per token", "wire bytes per token"}


def test_run_that_failed_is_an_error():
    record = replace(RECORD, status="oom", reason="rank 1 was killed", metrics=None)
    with pytest.raises(ProgramError, match="tpi, 2 devices: oom: rank 1 was killed"):
        run_counts(record, 2)


def test_packages_are_those_that_do_not_come_with_python():
    assert packages_of(["os", "os.path", "torch", "torch.nn", "__main__", "tpi.program.node"]) == {
        "torch", "tpi",
    }  # fmt: skip


def counts(**changes: float) -> Counts:
    values = {f"tpi, 2 devices: {name}": 1000.0 for name in TOLERANCES if name != "modules"}
    values["worker: modules"] = 1000.0
    for name, value in changes.items():
        values[next(what for what in values if name in what)] = value
    return Counts(values, frozenset({"torch", "tpi"}))


def verdicts(before: Counts, after: Counts) -> dict[str, str]:
    return {f.what: f.verdict for f in judge_counts(before, after) if f.verdict != "same"}


def test_equal_counts_are_the_same():
    assert verdicts(counts(), counts()) == {}


@pytest.mark.parametrize("name", ["messages", "allreduces"])
def test_one_more_of_what_is_compared_exactly_fails(name):
    assert list(verdicts(counts(), counts(**{name: 1001.0})).values()) == ["more"]


@pytest.mark.parametrize("name", ["disk", "wire", "memory", "modules"])
def test_bytes_and_modules_may_grow_by_a_hundredth(name):
    assert verdicts(counts(), counts(**{name: 1010.0})) == {}
    assert list(verdicts(counts(), counts(**{name: 1011.0})).values()) == ["more"]


def test_worker_that_imports_transformers_is_named():
    after = replace(counts(), packages=frozenset({"torch", "tpi", "transformers"}))
    (found,) = [f for f in judge_counts(counts(), after) if f.fails]
    assert (found.what, found.change) == (PACKAGES, "new: transformers")


def test_counter_that_the_head_has_lost_fails():
    after = counts()
    del after.values["tpi, 2 devices: messages per token"]
    assert list(verdicts(counts(), after).values()) == ["gone"]


def test_what_the_base_could_not_count_passes_with_its_reason():
    before = Counts(missing={"run": "base: no run.py", "spans": "no spans", "worker": "no node"})
    found = judge_counts(before, counts())
    assert {f.verdict for f in found} == {"no baseline"}
    assert {f.change for f in found} == {"base: no run.py", "no spans", "no node"}


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_head_that_cannot_run_is_an_error_and_no_missing_baseline(tmp_path):
    head, base = make_tree(tmp_path / "head", "head"), make_tree(tmp_path / "base")
    with pytest.raises(ProgramError, match="head"):
        compare_counters(base, head, tmp_path / "scratch", [], lambda _: None)
