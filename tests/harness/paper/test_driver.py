"""Predictions and how they are corrected, and times in words."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.paper.driver import TimeLeft, time_words


def test_predictions_are_believed_first():
    assert TimeLeft().about_s(100.0) == 100.0


@given(st.floats(0.1, 10), st.integers(1, 50))
def test_the_factor_comes_near_what_is_seen(slower, count):
    left = TimeLeft()
    for _ in range(count):
        left.passed(600.0, 600.0 * slower)
    factor = left.about_s(1.0)
    assert min(1, slower) <= factor <= max(1, slower)
    assert factor == pytest.approx(slower, rel=1 / (10 * count) * max(1, 1 / slower) + 1e-9)


def test_what_costs_nothing_to_predict_does_not_divide_by_zero():
    left = TimeLeft()
    left.passed(0.0, 0.0)
    assert left.about_s(1.0) == 1.0


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "1 s"), (45, "45 s"), (180, "3 min"), (40 * 60, "40 min"), (3.5 * 3600, "3.5 h")],
)
def test_time_words(seconds, words):
    assert time_words(seconds) == words
