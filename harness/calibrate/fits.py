"""From measured points to costs: a fixed part and one per unit. Pure.

Points lie over several orders of magnitude, so it is relative errors that are made small: a fixed
cost of microseconds would vanish beside the milliseconds of the largest message.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

__all__ = ["Line", "fit_line", "median", "medians"]


@dataclass(frozen=True, slots=True)
class Line:
    """`fixed + slope * x`; neither is negative."""

    fixed: float
    slope: float


def fit_line(points: Sequence[tuple[float, float]]) -> Line:
    """The line through (x, y) points with the least sum of squared relative errors.

    A cost cannot be negative: what would come out so is 0, and the other fitted alone.

    Raises:
        ValueError: Fewer than two different x, or a y that is not above 0.
    """
    if len({x for x, _ in points}) < 2 or min(y for _, y in points) <= 0:
        raise ValueError(f"expected two points above 0 at least, got {list(points)}")
    weights = [1 / y**2 for _, y in points]
    total = sum(weights)
    mean_x = sum(w * x for w, (x, _) in zip(weights, points, strict=True)) / total
    mean_y = sum(w * y for w, (_, y) in zip(weights, points, strict=True)) / total
    pairs = [(w, x - mean_x, y - mean_y) for w, (x, y) in zip(weights, points, strict=True)]
    slope = sum(w * dx * dy for w, dx, dy in pairs) / sum(w * dx * dx for w, dx, _ in pairs)
    if slope <= 0:
        return Line(mean_y, 0.0)
    fixed = mean_y - slope * mean_x
    if fixed >= 0:
        return Line(fixed, slope)
    ratios = [x / y for x, y in points]
    return Line(0.0, sum(ratios) / sum(r * r for r in ratios))


def medians(rounds: Sequence[Sequence[tuple[float, float]]]) -> list[tuple[float, float]]:
    """Of every x the median y over rounds that all measured the same x."""
    return [(column[0][0], median(y for _, y in column)) for column in zip(*rounds, strict=True)]
