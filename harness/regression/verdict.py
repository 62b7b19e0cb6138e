"""From numbers to findings: what is a regression, and the table of it. Pure.

A counter must not grow beyond its tolerance. A timing is judged from pairs: each round times the
base, the head and the base again close together, so that a machine that gets slower slows all
three. The ratio of head to base has a bootstrap interval, and so has again to base, which is noise
alone. The head is slower only if its whole interval lies above 1 and above the noise.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass

from rich.table import Table
from rich.text import Text

from results.records.schema import Spread
from results.records.stats import median, spread

Groups = Sequence[Sequence[float]]
_HEADINGS = ("what", "base", "head", "difference", "verdict")
_WELCOME = ("less", "faster")
FAILING = ("more", "slower", "new", "gone")
NO_BASELINE = "no baseline"
UNCLEAR = "unclear"
_HIDEABLE = math.log(1.1)  # a change that noise must not be able to hide


@dataclass(frozen=True, slots=True)
class Finding:
    """One row of the comparison.

    Attributes:
        what: Its name, under which it can be accepted.
        change: The difference, and how sure it is, for people.
        verdict: "same"; one of `_WELCOME` or `FAILING`; "unclear", if noise could hide a change of
            a tenth; or "no baseline".
    """

    what: str
    base: str
    head: str
    change: str
    verdict: str

    @property
    def fails(self) -> bool:
        """Whether this is a regression."""
        return self.verdict in FAILING


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one probe by start and round; the same place in all three lists is one round."""

    base: list[list[float]]
    head: list[list[float]]
    again: list[list[float]]

    def add_start(self) -> None:
        """Open a list of rounds for another start."""
        for side in (self.base, self.head, self.again):
            side.append([])

    def add(self, seconds: Mapping[str, float]) -> None:
        """Add a round: the seconds of each side."""
        for side, value in seconds.items():
            getattr(self, side)[-1].append(value)


def judge_counter(
    what: str, base: float | None, head: float | None, tolerance: float, why: str = ""
) -> Finding:
    """Compare a count: the head's may exceed the base's by this fraction; `why` one is missing."""
    before, after = _number(base), _number(head)
    if base is None:
        return Finding(what, before, after, why, NO_BASELINE)
    if head is None:
        return Finding(what, before, after, why, "gone")
    verdict = "same"
    if head > base * (1 + tolerance):
        verdict = "more"
    elif head < base * (1 - tolerance):
        verdict = "less"
    allowed = f"{tolerance:.0%} allowed" if tolerance else "exactly"
    return Finding(what, before, after, f"{_percent(base, head)} ({allowed})", verdict)


def judge_names(
    what: str, base: Iterable[str] | None, head: Iterable[str], why: str = ""
) -> Finding:
    """Compare two sets of names: one that is new is named, and fails."""
    there = set(head)
    if base is None:
        return Finding(what, _number(None), str(len(there)), why, NO_BASELINE)
    before = set(base)
    new, gone = sorted(there - before), sorted(before - there)
    words = [
        f"{word}: {', '.join(names)}" for word, names in (("new", new), ("gone", gone)) if names
    ]
    verdict = "new" if new else "less" if gone else "same"
    return Finding(what, str(len(before)), str(len(there)), "; ".join(words), verdict)


def judge_timing(what: str, timing: Timing) -> Finding:
    """Compare seconds by their ratios, as the module says."""
    ratio, noise = log_ratio(timing.head, timing.base), log_ratio(timing.again, timing.base)
    floor = max(abs(noise.low), abs(noise.high))
    verdict = "same"
    if ratio.low > floor:
        verdict = "slower"
    elif ratio.high < -floor:
        verdict = "faster"
    elif ratio.median > 0 and min(floor, ratio.high) > _HIDEABLE:
        verdict = UNCLEAR
    low, middle, high = (_gain(v) for v in (ratio.low, ratio.median, ratio.high))
    change = f"{middle} ({low} to {high}; noise up to {_gain(floor)})"
    return Finding(what, _seconds(timing.base), _seconds(timing.head), change, verdict)


def log_ratio(above: Groups, below: Groups) -> Spread:
    """Logarithm of the ratio of two lists of pairs, with its interval.

    The ratio is taken within each pair, so that whatever slows both at once cancels. A start counts
    by the median of its pairs, which a few disturbed ones do not move; starts are resampled.
    """
    return spread(
        [
            median([math.log(a / b) for a, b in zip(*both, strict=True)])
            for both in zip(above, below, strict=True)
        ]
    )


def _gain(log: float) -> str:
    return f"{math.expm1(log):+.1%}"


def _percent(base: float, head: float) -> str:
    if base == head:
        return "0"
    return f"{head / base - 1:+.2%}" if base else f"+{_number(head)}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.10g}"


def _seconds(groups: Groups) -> str:
    values = sorted(value for group in groups for value in group)
    return f"{1e3 * values[len(values) // 2]:.3g} ms"


def rich_table(findings: Sequence[Finding]) -> Table:
    """A row per finding."""
    table = Table(*_HEADINGS, box=None, pad_edge=False)
    for column in table.columns[1:3]:
        column.justify = "right"
    for finding in findings:
        style = "red" if finding.fails else "green" if finding.verdict in _WELCOME else ""
        table.add_row(*astuple(finding)[:-1], Text(finding.verdict, style))
    return table


def markdown(title: str, findings: Sequence[Finding], verdict: str) -> str:
    """The same as Markdown, with a heading above and the verdict below."""
    rows = [_HEADINGS, ("---", "---:", "---:", "---", "---"), *map(astuple, findings)]
    lines = ["| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in rows]
    return "\n".join([f"# {title}", "", *lines, "", verdict, ""])
