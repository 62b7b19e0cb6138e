"""Bands and verdicts: what is out is named with its number, what was expected and how far off it
may be."""

import json

import pytest

from testbed.links.link import LinkSpec
from testbed.verify.tolerances import (
    Figure,
    ProbeReport,
    expected_goodput_bps,
    expected_rtt_s,
    judge,
    judge_limit,
    measured_twice,
    path_loss,
    rtt_band_s,
)

KLONET = LinkSpec(0.002, 300e6, 0.0, 16 << 20)


@pytest.mark.parametrize(
    ("measured", "verdict"),
    [(1.0, "ok"), (0.9, "ok"), (1.1, "ok"), (0.89, "out"), (1.11, "out"), (None, "unmeasured")],
)
def test_a_tenth_is_the_band(measured, verdict):
    assert judge(0, "cpus", 1.0, measured, why="no").verdict == verdict


def test_nothing_expected_is_only_recorded():
    figure = judge(0, "read_bps", None, 5e8)
    assert figure.verdict == "recorded"
    assert figure.problem is None
    assert figure.deviation is None


def test_an_upper_bound_forgives_less():
    assert judge(1, "rate_bps", 1e6, 1.0, is_upper=True).verdict == "ok"
    figure = judge(1, "rate_bps", 1e6, 2e6, is_upper=True)
    assert figure.problem == (
        "device 1: rate to the master 2.0 Mbit/s, expected at most 1.0 +- 0.1 Mbit/s"
    )


@pytest.mark.parametrize(
    ("asked", "in_force", "verdict"),
    [
        (64 << 20, 64 << 20, "ok"),
        ((64 << 20) + 5, 64 << 20, "ok"),  # the kernel counts whole pages
        (64 << 20, (64 << 20) + 4096, "out"),
        (64 << 20, None, "unmeasured"),
        (None, None, "recorded"),
        (None, 64 << 20, "recorded"),
    ],
)
def test_memory_is_exact(asked, in_force, verdict):
    assert judge_limit(0, "memory", asked, in_force).verdict == verdict


def test_problems_are_one_line_each():
    figures = (
        judge(3, "rtt_s", 0.008, 0.0093, band=rtt_band_s(0.008, 1.0)),
        judge(1, "cpus", 0.5, 0.5),
        judge(2, "read_bps", 50e6, None, why="there is no file to read"),
        judge_limit(0, "memory", 1 << 20, None),
        judge_limit(0, "memory", 1 << 20, 1 << 21),
    )
    assert ProbeReport(figures).problems == (
        "device 3: RTT to the master 9.30 ms, expected 8.00 +- 0.80 ms",
        "device 2: disk read rate could not be measured: there is no file to read",
        "device 0: memory limit could not be measured: no limit is in force",
        "device 0: memory limit 2097152 bytes, expected 1048576 bytes",
    )


def test_report_is_json_with_every_figure():
    report = ProbeReport((judge(0, "cpus", 0.5, 0.25),), wall_s=1.23456)
    found = json.loads(json.dumps(report.to_json()))
    assert found["wall_s"] == 1.235
    assert found["problems"] == ["device 0: CPU 0.250 cores, expected 0.500 +- 0.050 cores"]
    assert found["figures"] == [
        {
            "device": 0, "what": "cpus", "expected": 0.5, "measured": 0.25, "band": 0.05,
            "verdict": "out", "why": "", "is_upper": False, "tries": 1, "deviation": -0.25,
        }
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("expected_s", "dilation", "band_s"),
    [(0.0, 1, 0.3e-3), (0.002, 1, 0.3e-3), (0.008, 1, 0.8e-3), (0.064, 8, 6.4e-3), (0, 8, 2.4e-3)],
)
def test_round_trips_may_be_off_by_a_third_of_a_millisecond_undilated(expected_s, dilation, band_s):
    assert rtt_band_s(expected_s, dilation) == pytest.approx(band_s)


def test_expected_values_of_the_paper_testbed():
    assert expected_rtt_s(KLONET, KLONET) == pytest.approx(8.0057e-3, rel=1e-4)
    assert expected_goodput_bps(KLONET, KLONET) == pytest.approx(289.6e6)
    slow = LinkSpec(rate_bps=10e6, loss_frac=0.1)
    assert expected_goodput_bps(slow, KLONET) == pytest.approx(9.6533e6, rel=1e-4)
    assert expected_goodput_bps(LinkSpec(), LinkSpec()) is None
    assert path_loss(slow, slow) == pytest.approx(0.19)


def test_what_is_wrong_is_measured_once_more():
    tries = [[judge(0, "cpus", 1.0, 0.5)], [judge(0, "cpus", 1.0, 0.95)]]
    (figure,) = measured_twice(lambda: tries.pop(0))
    assert (figure.verdict, figure.tries) == ("ok", 2)
    fine: list[Figure] = [judge(0, "cpus", 1.0, 1.0)]
    assert measured_twice(lambda: fine) is fine
