"""Medians with bootstrap 95 % intervals: repeats are resampled, then tokens within each.

This is the two-level (cluster) bootstrap, since tokens of one repeat are not independent. It is
seeded: the same records give the same table.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from results.records.schema import Spread

_RESAMPLES = 2000
_INTERVAL = (2.5, 97.5)
# Resamples of one repeat's tokens are drawn in pieces, to bound memory at many tokens.
_MAX_DRAWN = 1 << 22


def median(values: Sequence[float]) -> float:
    """The median; of an even number, the mean of the middle two."""
    return float(np.median(np.asarray(values, dtype=np.float64)))


def spread(values: Sequence[float], seed: int = 0) -> Spread:
    """Median of one value per repeat, with its interval; one repeat has no width."""
    return spread_of_means([[value] for value in values], seed)


def spread_of_means(groups: Sequence[Sequence[float]], seed: int = 0) -> Spread:
    """Median over repeats of the mean of each, resampling repeats, then values within each."""
    means = [float(np.mean(group)) for group in groups]
    drawn = _resample_means(groups, np.random.default_rng(seed))
    return _spread(median(means), drawn, len(groups))


def ratio_of_means(
    above: Sequence[Sequence[float]], below: Sequence[Sequence[float]], seed: int = 0
) -> Spread:
    """Ratio of two systems' medians of means, with its interval; `n` is the smaller number."""
    rng = np.random.default_rng(seed)
    drawn = _resample_means(above, rng) / _resample_means(below, rng)
    point = median([float(np.mean(g)) for g in above]) / median([float(np.mean(g)) for g in below])
    return _spread(point, drawn, min(len(above), len(below)))


def _spread(point: float, drawn: NDArray[np.float64], n: int) -> Spread:
    low, high = (float(v) for v in np.percentile(drawn, _INTERVAL))
    # The point estimate belongs to its interval, which few repeats do not guarantee.
    return Spread(point, min(low, point), max(high, point), n)


def _resample_means(
    groups: Sequence[Sequence[float]], rng: np.random.Generator
) -> NDArray[np.float64]:
    """(draws,) medians over repeats of means of tokens, both drawn with replacement."""
    picked = rng.integers(0, len(groups), size=(len(groups), _RESAMPLES))
    means = np.empty(picked.shape)
    for index, group in enumerate(groups):
        slots = picked == index
        means[slots] = _means_of_resamples(group, int(slots.sum()), rng)
    return np.asarray(np.median(means, axis=0))


def _means_of_resamples(
    group: Sequence[float], num_draws: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    values = np.asarray(group, dtype=np.float64)
    step = max(1, _MAX_DRAWN // len(values))
    means = np.empty(num_draws)
    for start in range(0, num_draws, step):
        stop = min(start + step, num_draws)
        means[start:stop] = rng.choice(values, size=(stop - start, len(values))).mean(axis=1)
    return means
