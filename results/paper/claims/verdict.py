"""What a rule finds: items with a number and a verdict each, and one verdict for all of them.

A claim about several models has one item for each. One item that fails disproves the claim; the
claim holds only if every item does. An interval that holds the bound decides nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from results.records.schema import Spread

REPRODUCED, NOT_REPRODUCED, UNDECIDED = "reproduced", "not reproduced", "undecided"
VERDICTS = (REPRODUCED, NOT_REPRODUCED, UNDECIDED)
_NAMED = 2  # labels of one reason


@dataclass(frozen=True, slots=True)
class Item:
    """One part of a claim; without a verdict it says nothing for or against it."""

    label: str  # what it is about: a model, a device count, a link latency
    verdict: str = ""
    figure: str = ""  # the number that decides, in words; empty where there is none
    reason: str = ""  # why it is undecided or does not count
    model: str = ""  # of which model it is, where the rule takes every run

    def __str__(self) -> str:
        text = "; ".join(filter(None, (self.figure, self.reason)))
        return f"{self.label}: {text}" if text else self.label


@dataclass(frozen=True, slots=True)
class Finding:
    """What one kind of evidence says of a claim."""

    verdict: str  # one of `VERDICTS`
    items: tuple[Item, ...] = ()  # its parts
    reason: str = ""  # why it is undecided
    coverage: str = ""  # how many of the claim's places were run, where not all were

    @property
    def subject(self) -> str:
        """The models that it is of, where the rule takes every run."""
        return ", ".join(sorted({item.model for item in self.items if item.verdict} - {""}))

    @property
    def has_numbers(self) -> bool:
        """Whether there is anything of this kind at all."""
        return any(item.figure for item in self.items)


def joined(items: Sequence[Item]) -> Finding:
    """One verdict of all items: one that fails decides, else all must hold."""
    found = [item for item in items if item.verdict]
    if any(item.verdict == NOT_REPRODUCED for item in found):
        return Finding(NOT_REPRODUCED, tuple(items))
    missing = [item for item in found if item.verdict == UNDECIDED]
    if found and not missing:
        return Finding(REPRODUCED, tuple(items))
    return Finding(UNDECIDED, tuple(items), _reasons(missing or items))


def item_of(
    label: str,
    value: Spread | None,
    rule: Callable[[Spread], str],
    figure: Callable[[Spread], str],
    missing: str,
    bound: str = "",
) -> Item:
    """An item of one number; `figure` and `bound` are its words, `missing` why there is none."""
    if value is None:
        return Item(label, UNDECIDED, reason=missing)
    verdict = rule(value)
    reason = f"the interval holds {bound}" if bound and verdict == UNDECIDED else ""
    return Item(label, verdict, figure(value), reason)


def _reasons(items: Sequence[Item]) -> str:
    """Each reason once, with the first labels that it holds for."""
    labels: dict[str, list[str]] = {}
    for item in items:
        if item.reason:
            labels.setdefault(item.reason, []).append(item.label)
    reasons = []
    for reason, found in labels.items():
        more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
        reasons.append(f"{reason} ({', '.join(found[:_NAMED])}{more})")
    return "; ".join(reasons) or "there is nothing to judge"


def at_least(value: Spread, bound: float) -> str:
    """Whether a value is at least a bound, its whole interval with it."""
    if value.low >= bound:
        return REPRODUCED
    return NOT_REPRODUCED if value.high < bound else UNDECIDED


def at_most(value: Spread, bound: float) -> str:
    """Whether a value, with its whole interval, is at most a bound."""
    if value.high <= bound:
        return REPRODUCED
    return NOT_REPRODUCED if value.low > bound else UNDECIDED


def within(value: Spread, low: float, high: float) -> str:
    """Whether a value, with its whole interval, lies between two bounds."""
    return worst((at_least(value, low), at_most(value, high)))


def worst(verdicts: Sequence[str]) -> str:
    """One verdict of several that must all hold."""
    for verdict in (NOT_REPRODUCED, UNDECIDED):
        if verdict in verdicts:
            return verdict
    return REPRODUCED


def point(value: float, n: int = 1) -> Spread:
    """A number without an interval."""
    return Spread(value, value, value, n)


def saved(ratio: Spread) -> Spread:
    """What a ratio leaves of one."""
    return Spread(1 - ratio.median, 1 - ratio.high, 1 - ratio.low, ratio.n)


def percent(share: float) -> str:
    """`80 %`."""
    return f"{100 * share:.3g} %"


def in_percent(value: Spread) -> str:
    """`87.5 %`, with its interval where it has one."""
    text = f"{100 * value.median:.1f} %"
    if value.low == value.high:
        return text
    return f"{text} ({100 * value.low:.1f} to {100 * value.high:.1f})"


def less(share: Spread) -> str:
    """`87.5 % less`; `57.4 % more` where nothing was saved."""
    if share.median >= 0:
        return f"{in_percent(share)} less"
    return f"{in_percent(Spread(-share.median, -share.high, -share.low, share.n))} more"


def in_times(value: Spread) -> str:
    """`7.02 times`, with its interval where it has one."""
    text = f"{value.median:.3g} times"
    return text if value.low == value.high else f"{text} ({value.low:.3g} to {value.high:.3g})"


def repeats(value: Spread) -> str:
    """` (n=3)`; with one repeat, that the interval is of its tokens alone."""
    if value.n == 1 and value.low != value.high:
        return " (1 repeat: the interval is of its tokens alone)"
    return f" (n={value.n})" if value.n else ""
