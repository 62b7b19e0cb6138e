"""Costs from points: what made them comes out again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.calibrate.fits import Line, fit_line, medians
from harness.calibrate.messages import costs_from
from testbed.links.link import MSS_BYTES

SIZES = (64, 1024, 32768, 1048576)


@given(st.floats(1e-7, 1e-2), st.floats(1e-12, 1e-6))
def test_line_through_exact_points_is_the_one_that_made_them(fixed, slope):
    line = fit_line([(x, fixed + slope * x) for x in SIZES])
    assert line.slope == pytest.approx(slope, rel=1e-6)
    assert line.fixed == pytest.approx(fixed, rel=1e-4, abs=1e-4 * slope * SIZES[0])


def test_small_figures_count_as_much_as_large_ones():
    """A millisecond too many at the largest size must not drown microseconds at the least."""
    points = [(x, 20e-6 + 1e-9 * x) for x in SIZES]
    points[-1] = (points[-1][0], points[-1][1] * 1.3)
    assert fit_line(points).fixed == pytest.approx(20e-6, rel=0.05)


@pytest.mark.parametrize(
    ("points", "line"),
    [
        ([(1, 4.0), (2, 4.0), (3, 4.0)], Line(4.0, 0.0)),
        ([(1, 9.0), (100, 1.0)], None),
        ([(10, 1.0), (20, 3.0)], None),
    ],
)
def test_no_cost_is_negative(points, line):
    found = fit_line(points)
    assert found.fixed >= 0
    assert found.slope >= 0
    assert line is None or found == line


@pytest.mark.parametrize("points", [[(1, 1.0)], [(1, 1.0), (1, 2.0)], [(1, 0.0), (2, 1.0)]])
def test_points_that_fix_no_line_are_refused(points):
    with pytest.raises(ValueError, match="two points"):
        fit_line(points)


def test_median_of_rounds_is_taken_point_by_point():
    rounds = [[(1, 1.0), (2, 9.0)], [(1, 3.0), (2, 8.0)], [(1, 2.0), (2, 7.0)]]
    assert medians(rounds) == [(1, 2.0), (2, 8.0)]


def test_message_costs_add_up_to_the_way_there():
    one_way = [(x, 50e-6 + 2e-9 * x) for x in SIZES]
    calls = [(x, 20e-6 + 1e-9 * x) for x in SIZES]
    costs = costs_from(calls, one_way)
    assert costs["send_s"] == pytest.approx(20e-6, rel=0.01)
    assert costs["send_s"] + costs["recv_s"] == pytest.approx(50e-6, rel=0.01)
    assert 2 * costs["packet_s"] == pytest.approx(2e-9 * MSS_BYTES, rel=0.01)
