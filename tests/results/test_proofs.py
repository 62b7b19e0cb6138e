from results.proofs import conditions_of, proven_of
from results.schema import RunRecord
from tests.results.examples import as_calibration


def figure(device, measured, verdict="ok", **changes):
    values = {"device": device, "what": "rtt_s", "expected": 0.064, "band": 0.0064}
    return values | {"measured": measured, "verdict": verdict} | changes


def record(*proofs):
    return RunRecord("tpi-1", "tpi", "ok", calibration=as_calibration({"proofs": list(proofs)}))


PROOF = {
    "before": {"figures": [figure(1, 0.064), figure(2, 0.066)]},
    "after": {"figures": [figure(1, 0.096, "off"), figure(0, 0.2, what="cpus", expected=0.2)]},
    "conditions": {"foreign_cores": 0.01, "steal_cores": 0.0, "late_us": {"p99": 93}},
    "problems": ["rank 1: <slow>"],
}


def test_probes_of_one_kind_are_one_line_with_the_worst_of_them():
    round_trip, cpus = proven_of(record(PROOF))
    assert round_trip.cells == (
        "round trip", "64 ms", "64 ms to 96 ms", "50.0 %", "10 %", "3", "1",
    )  # fmt: skip
    assert (cpus.what, cpus.count, cpus.failed) == ("cpus", 1, 0)


def test_conditions_are_the_worst_of_all_repeats():
    calm = PROOF | {"conditions": {"foreign_cores": 0.0}, "problems": []}
    lines = conditions_of(record(calm, PROOF))
    assert "cores used by other programs: at most 0.01" in lines
    assert "timers late, 99 of 100: at most 93 µs" in lines
    assert lines[-1] == "did not hold: rank 1: <slow>"


def test_a_run_without_proofs_has_none():
    bare = RunRecord("tpi-1", "tpi", "ok")
    assert proven_of(bare) == []
    assert conditions_of(bare) == []
