"""From measured points to costs: a fixed part and one per unit. Pure.

Points lie over several orders of magnitude, so relative errors are minimised: a fixed cost of
microseconds would vanish beside the milliseconds of the largest message.
"""

from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

import numpy as np

Points = Sequence[tuple[float, float]]


class Line(NamedTuple):
    """`fixed + slope * x`; neither is negative."""

    fixed: float
    slope: float


def fit_line(points: Points) -> Line:
    """The line through (x, y) points with the least sum of squared relative errors.

    A cost cannot be negative: a negative part becomes 0, and the other is fitted alone.

    Raises:
        ValueError: Fewer than two different x, or a y that is not above 0.
    """
    if len({x for x, _ in points}) < 2 or min(y for _, y in points) <= 0:
        raise ValueError(f"expected two points above 0 at least, got {list(points)}")
    x, y = np.array(points, float).T
    slope, fixed = np.polyfit(x, y, 1, w=1 / y).tolist()
    if slope <= 0:
        return Line(float(np.average(y, weights=y**-2)), 0.0)
    if fixed < 0:
        return Line(0.0, float(sum(x / y) / sum((x / y) ** 2)))
    return Line(fixed, slope)


def medians(rounds: Sequence[Points]) -> list[tuple[float, float]]:
    """The median y of every x, over rounds that all measured the same x."""
    return [(column[0][0], median(y for _, y in column)) for column in zip(*rounds, strict=True)]
