"""What is a regression and what is noise, from made-up numbers."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.regression.verdict import (
    UNCLEAR,
    Timing,
    judge_counter,
    judge_names,
    judge_timing,
    log_ratio,
)

STARTS, ROUNDS = 5, 6


def draw(rng: random.Random, factor: float = 1.0, noise: float = 0.02) -> list[list[float]]:
    """Seconds whose starts and rounds differ by that much, around 10 ms times `factor`."""
    starts = [math.exp(rng.gauss(0, noise / 2)) for _ in range(STARTS)]
    return [
        [0.01 * factor * start * math.exp(rng.gauss(0, noise)) for _ in range(ROUNDS)]
        for start in starts
    ]


def timing(seed: int, factor: float = 1.0, noise: float = 0.02) -> Timing:
    rng = random.Random(seed)
    return Timing(draw(rng, 1.0, noise), draw(rng, factor, noise), draw(rng, 1.0, noise))


SECONDS = st.floats(1e-6, 1e2)
GROUPS = st.lists(st.lists(SECONDS, min_size=3, max_size=3), min_size=3, max_size=3)


@pytest.mark.parametrize("seed", range(20))
def test_slowdown_of_30_percent_with_2_percent_noise_fails(seed):
    found = judge_timing("time: x", timing(seed, factor=1.3))
    assert found.verdict == "slower"
    assert found.fails


@pytest.mark.parametrize("seed", range(20))
def test_speedup_of_30_percent_is_faster_and_passes(seed):
    found = judge_timing("time: x", timing(seed, factor=1 / 1.3))
    assert found.verdict == "faster"
    assert not found.fails


def test_noise_that_could_hide_a_tenth_is_said_where_the_head_looks_slower():
    base = [[1.0] * ROUNDS for _ in range(STARTS)]
    again = [[value * factor for value in group]
             for group, factor in zip(base, (1, 1, 1, 1, 1.35), strict=True)]  # fmt: skip
    head = [[value * 1.3 for value in group] for group in base]
    found = judge_timing("time: x", Timing(base, head, again))
    assert (found.verdict, found.fails) == (UNCLEAR, False)
    assert judge_timing("time: x", Timing(base, base, again)).verdict == "same"


def test_equal_distributions_hardly_ever_fail():
    # What the rule promises is rarity, not absence: see the base rate in `verdict.py`.
    verdicts = [judge_timing("time: x", timing(seed)).verdict for seed in range(100)]
    assert verdicts.count("slower") == 0


@pytest.mark.parametrize("seed", range(20))
def test_noise_between_starts_protects(seed):
    rng = random.Random(seed)
    base, head, again = draw(rng), draw(rng, 1.1), draw(rng)
    # One more of the same base is now and then up to a quarter off: 10 % prove nothing then.
    again = [
        [v * f for v in group] for group, f in zip(again, (1, 1.25, 1, 1.2, 1.25), strict=True)
    ]
    assert judge_timing("time: x", Timing(base, head, again)).verdict in ("same", UNCLEAR)
    assert judge_timing("time: x", Timing(base, head, base)).verdict == "slower"


@given(GROUPS, GROUPS)
def test_head_that_is_as_the_base_once_more_never_fails(base, again):
    assert judge_timing("time: x", Timing(base, again, again)).verdict in ("same", UNCLEAR)


@given(GROUPS)
def test_equal_numbers_are_the_same(base):
    assert judge_timing("time: x", Timing(base, base, base)).verdict == "same"


@given(GROUPS, GROUPS, st.floats(0.1, 10))
def test_ratio_knows_no_unit(above, below, unit):
    scaled = [[[v * unit for v in group] for group in groups] for groups in (above, below)]
    plain, other = log_ratio(above, below), log_ratio(*scaled)
    assert other.median == pytest.approx(plain.median, abs=1e-9)
    assert (other.low, other.high) == pytest.approx((plain.low, plain.high), abs=1e-9)


def test_machine_that_slows_down_slows_both():
    base = [[0.01 * 2**r for r in range(ROUNDS)] for _ in range(STARTS)]
    head = [[v * 1.05 for v in group] for group in base]
    found = judge_timing("time: x", Timing(base, head, base))
    assert found.verdict == "slower"
    assert "+5.0% (+5.0% to +5.0%; noise up to +0.0%)" in found.change


@pytest.mark.parametrize(
    ("base", "head", "tolerance", "verdict"),
    [
        (96, 96, 0.0, "same"), (96, 97, 0.0, "more"), (96, 95, 0.0, "less"),
        (1000, 1010, 0.01, "same"), (1000, 1011, 0.01, "more"), (1000, 989, 0.01, "less"),
        (0, 0, 0.01, "same"), (0, 1, 0.01, "more"), (None, 5, 0.0, "no baseline"),
        (5, None, 0.0, "gone"),
    ],
)  # fmt: skip
def test_counter(base, head, tolerance, verdict):
    assert judge_counter("x", base, head, tolerance, "why").verdict == verdict


@given(st.floats(0, 1e12), st.floats(0, 1e12), st.floats(0, 0.5))
def test_counter_fails_exactly_where_it_grew_beyond_the_tolerance(base, head, tolerance):
    assert judge_counter("x", base, head, tolerance).fails == (head > base * (1 + tolerance))


def test_new_name_fails_and_is_named_even_where_another_left():
    found = judge_names("packages", {"torch", "old"}, {"torch", "transformers"})
    assert found.fails
    assert found.change == "new: transformers; gone: old"


def test_name_that_left_is_welcome():
    assert not judge_names("packages", {"torch", "old"}, {"torch"}).fails


def test_names_without_a_baseline_pass():
    found = judge_names("packages", None, {"torch"}, "no tpi.program.node")
    assert (found.verdict, found.fails, found.change) == (
        "no baseline",
        False,
        "no tpi.program.node",
    )
