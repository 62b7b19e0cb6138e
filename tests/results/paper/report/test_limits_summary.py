import pytest

from results.paper.report.limits_summary import condition_lines, summarise
from results.paper.report.record_facts import simulator_facts, verifications_of
from results.records.schema import RecordError, RunRecord


def probe(device, measured, verdict="ok", **changes):
    values = {"device": device, "what": "rtt_s", "expected": 0.064, "band": 0.0064}
    return values | {"measured": measured, "verdict": verdict} | changes


def found(*proofs):
    return verifications_of(RunRecord("tpi-1", "tpi", "ok", calibration={"proofs": list(proofs)}))


PROOF = {
    "before": {"figures": [probe(1, 0.064), probe(2, 0.066)]},
    "after": {"figures": [probe(1, 0.096, "off"), probe(0, 0.2, what="cpus", expected=0.2)]},
    "conditions": {"foreign_cores": 0.01, "swapped_out": 8192, "late_us": {"p99": 93}},
    "problems": ["rank 1: <slow>"],
}


def test_probes_of_one_kind_are_one_line_with_the_worst_of_them():
    round_trip, cpus = summarise(found(PROOF))
    assert round_trip.cells == (
        "round trip", "64 ms", "64 ms to 96 ms", "50.0 %", "10 %", "3", "1",
    )  # fmt: skip
    assert (cpus.what, cpus.count, cpus.failed) == ("cpus", 1, 0)


def test_what_was_not_measured_or_not_limited_is_not_held():
    figures = [probe(0, None, "unmeasured"), probe(0, 0.001, "recorded", expected=None, band=0)]
    (row,) = summarise(found({"before": {"figures": figures}}))
    assert (row.asked, row.worst_share, row.failed) == ((0, 0.064), 1.0, 2)


def test_conditions_are_the_worst_of_all_repeats():
    calm = PROOF | {"conditions": {"foreign_cores": 0.0}, "problems": []}
    lines = list(condition_lines(found(calm, PROOF)))
    assert "cores used by other programs: at most 0.01" in lines
    assert "swapped out: at most 8 KiB" in lines
    assert "timers late, 99 of 100: at most 93 µs" in lines
    assert lines[-1] == "did not hold: rank 1: <slow>"


def test_a_run_without_proofs_has_none():
    assert summarise(found()) == []
    assert list(condition_lines(found())) == []


def test_a_proof_of_another_shape_is_refused_by_name():
    with pytest.raises(RecordError, match=r"record tpi-1: calibration\.proofs: .*measured must be"):
        found({"before": {"figures": [probe(1, "fast")]}})


def test_a_calibration_is_named_by_path():
    simulator = {"name": "epyc", "content": {"b": [1, {"c": "x"}]}}
    record = RunRecord("tpi-1", "tpi", "ok", calibration={"simulator": simulator})
    assert simulator_facts(record) == (
        ("name", "epyc"), ("content.b[0]", "1"), ("content.b[1].c", "x"),
    )  # fmt: skip
    assert simulator_facts(RunRecord("tpi-1", "tpi", "ok")) == ()
