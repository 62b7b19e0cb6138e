import numpy as np
import pytest

from results.records.stats import median, ratio_of_means, spread, spread_of_means


def test_median_of_an_even_number_is_the_mean_of_the_middle():
    assert median([4.0, 1.0, 2.0, 8.0]) == 3.0


def test_one_repeat_of_one_value_has_no_width():
    result = spread([2.5])
    assert (result.median, result.low, result.high, result.n) == (2.5, 2.5, 2.5, 1)


def test_interval_holds_the_median_and_is_the_same_every_time():
    values = [1.0, 1.1, 1.3, 1.2, 5.0]
    result = spread(values)
    assert result == spread(values)
    assert (result.median, result.n) == (1.2, 5)
    assert 1.0 <= result.low < 1.2 < result.high <= 5.0


def test_interval_of_means_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(40):
        groups = [rng.normal(10, 1, 30) + rng.normal(0, 0.5) for _ in range(7)]
        result = spread_of_means([list(g) for g in groups])
        covered += result.low <= 10 <= result.high
    assert covered >= 34


def test_tokens_of_one_repeat_give_it_a_width():
    result = spread_of_means([[1.0, 2.0, 3.0, 2.0]])
    assert result.median == 2.0
    assert 1.0 <= result.low < 2.0 < result.high <= 3.0


def test_groups_of_different_length_and_many_tokens():
    result = spread_of_means([[1.0] * 5000, [2.0] * 3, [2.0]])
    assert (result.median, result.low, result.high) == (2.0, 1.0, 2.0)


def test_ratio_of_a_system_with_itself_holds_one():
    groups = [[1.0, 1.2, 0.9], [1.1, 1.0, 1.3]]
    result = ratio_of_means(groups, groups)
    assert result.median == 1.0
    assert result.low < 1.0 < result.high


def test_ratio_tells_a_clear_difference():
    fast, slow = [[1.0, 1.1], [1.0, 1.05]], [[3.0, 3.1], [3.2, 3.0]]
    result = ratio_of_means(slow, fast)
    assert result.median == pytest.approx(2.96, rel=0.02)
    assert result.low > 2.5
