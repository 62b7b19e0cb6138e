from results.paper.report.trust import condition_lines, limit_rows, simulator_facts
from results.records.schema import RunRecord
from tests.results.examples import as_calibration


def probe(device, measured, verdict="ok", **changes):
    values = {"device": device, "what": "rtt_s", "expected": 0.064, "band": 0.0064}
    return values | {"measured": measured, "verdict": verdict} | changes


def found(*proofs):
    return as_calibration({"proofs": list(proofs)}).proofs


CALM = {
    "wall_s": 1.0, "foreign_cores": 0.0, "steal_cores": 0.0, "own_cores": 0.0, "swapped_in": 0,
    "swapped_out": 0, "devices": [],
}  # fmt: skip
PROOF = {
    "before": {"figures": [probe(1, 0.064), probe(2, 0.066)]},
    "after": {"figures": [probe(1, 0.096, "out"), probe(0, 0.2, what="cpus", expected=0.2)]},
    "conditions": CALM | {"foreign_cores": 0.01, "swapped_out": 8192, "late_us": {"p99": 93}},
    "problems": ["rank 1: <slow>"],
}


def test_probes_of_one_kind_are_one_line_with_the_worst_of_them():
    round_trip, cpus = limit_rows(found(PROOF))
    assert round_trip == ("round trip", "64 ms", "64 ms to 96 ms", "50.0 %", "10 %", "3", "1")
    assert (cpus[0], *cpus[-2:]) == ("CPU limit", "1", "0")


def test_what_was_not_measured_or_not_limited_is_not_held():
    figures = [probe(0, None, "unmeasured"), probe(0, 0.001, "recorded", expected=None, band=0)]
    (row,) = limit_rows(found({"before": {"figures": figures}}))
    assert (row[1], row[3], row[6]) == ("0 µs to 64 ms", "100.0 %", "2")


def test_conditions_are_the_worst_of_all_repeats():
    calm = PROOF | {"conditions": CALM, "problems": []}
    lines = list(condition_lines(found(calm, PROOF)))
    assert "cores used by other programs: at most 0.01" in lines
    assert "swapped out: at most 8 KiB" in lines
    assert "timers late, 99 of 100: at most 93 µs" in lines
    assert lines[-1] == "did not hold: rank 1: <slow>"


def test_a_run_without_proofs_has_none():
    assert limit_rows(found()) == []
    assert list(condition_lines(found())) == []


def test_a_calibration_is_named_by_path():
    simulator = {"name": "epyc", "content": {"b": [1, {"c": "x"}]}}
    record = RunRecord("tpi-1", "tpi", "ok", calibration=as_calibration({"simulator": simulator}))
    facts = dict(simulator_facts(record))
    assert (facts["name"], facts["content.b[0]"], facts["content.b[1].c"]) == ("epyc", "1", "x")
    assert simulator_facts(RunRecord("tpi-1", "tpi", "ok")) == ()
