import pytest

from results.paper.claims.verdict import (
    NOT_REPRODUCED,
    REPRODUCED,
    UNDECIDED,
    Item,
    at_least,
    at_most,
    in_percent,
    joined,
    less,
    within,
)
from results.records.schema import Spread

HOLDS, FAILS, OPEN = (Item(v, v, "1") for v in (REPRODUCED, NOT_REPRODUCED, UNDECIDED))
SILENT = Item("oom", reason="no ratio")


def spread(low, high):
    return Spread((low + high) / 2, low, high, 3)


@pytest.mark.parametrize(
    ("items", "verdict"),
    [
        ([HOLDS, HOLDS], REPRODUCED),
        ([HOLDS, SILENT], REPRODUCED),
        ([HOLDS, OPEN], UNDECIDED),
        ([HOLDS, OPEN, FAILS], NOT_REPRODUCED),
        ([SILENT], UNDECIDED),
        ([], UNDECIDED),
    ],
)
def test_one_item_that_fails_decides_and_all_must_hold(items, verdict):
    assert joined(items).verdict == verdict


def test_undecided_says_each_reason_once_with_whom_it_holds_for():
    items = [Item(name, UNDECIDED, reason="not run") for name in "abcd"]
    assert joined(items).reason == "not run (a, b and 2 more)"
    assert joined([SILENT]).reason == "no ratio (oom)"
    assert joined([]).reason == "there is nothing to judge"


@pytest.mark.parametrize(
    ("value", "least", "most"),
    [
        (spread(0.81, 0.9), REPRODUCED, NOT_REPRODUCED),
        (spread(0.7, 0.9), UNDECIDED, UNDECIDED),
        (spread(0.7, 0.79), NOT_REPRODUCED, REPRODUCED),
        (spread(0.8, 0.8), REPRODUCED, REPRODUCED),
    ],
)
def test_an_interval_decides_on_one_side_of_the_bound_only(value, least, most):
    assert at_least(value, 0.8) == least
    assert at_most(value, 0.8) == most


def test_within_is_both_bounds():
    assert within(spread(1.8, 2.2), 1.7, 2.3) == REPRODUCED
    assert within(spread(1.6, 2.2), 1.7, 2.3) == UNDECIDED
    assert within(spread(2.4, 2.5), 1.7, 2.3) == NOT_REPRODUCED


def test_figures_have_an_interval_where_there_is_one():
    assert in_percent(spread(0.5, 0.5)) == "50.0 %"
    assert in_percent(spread(0.4, 0.6)) == "50.0 % (40.0 to 60.0)"
    assert less(spread(-0.6, -0.4)) == "50.0 % (40.0 to 60.0) more"
