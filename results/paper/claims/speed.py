"""Rules of the claims about time: how far below other systems, and over devices, cores, bandwidth.

Every rule takes a `View` of one kind of evidence and gives a `Finding`. Bounds that the paper does
not give are ours, and the rule in words (`results/paper/claims/judge.py`) says so. Read `below`
first.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

from results.paper.cell import Place
from results.paper.claims.evidence import MEASURED, SIMULATED, View
from results.paper.claims.verdict import (
    NOT_REPRODUCED,
    UNDECIDED,
    Finding,
    Item,
    at_least,
    at_most,
    in_times,
    joined,
    less,
    percent,
)
from results.paper.render.layouts import LOADS_FIRST, METRIC_LABELS, label_of
from results.records.schema import Spread
from tpi.units import format_seconds

SPEED_METRICS = ("ttft_s", "token_latency_s")
_RUNS = (MEASURED, SIMULATED)
_TPI = "tpi"
# Of two numbers with two digits: 6 of 30 s are 80 % less.
_ROUNDING = 1e-9


def speed_places(exhibit: str, rows: Sequence[str], column: str) -> tuple[Place, ...]:
    """What `below` looks at."""
    return tuple(
        Place(exhibit, row, name, metric if name == _TPI else their_metric(column, metric))
        for row in rows
        for metric in SPEED_METRICS
        for name in (_TPI, column)
    )


def their_metric(column: str, metric: str) -> str:
    """What of another system's run TPI-LLM's time is compared with: TTFT includes its loading."""
    loads = metric == "ttft_s" and column in LOADS_FIRST
    return "first_token_s" if loads else metric


def below(view: View, exhibit: str, rows: Sequence[str], column: str, bound: float) -> Finding:
    """Whether TPI-LLM's times are at least `bound` below another system's, for every model."""
    return joined(
        [
            _below(view, Place(exhibit, row, _TPI, metric), column, bound)
            for row in rows
            for metric in SPEED_METRICS
        ]
    )


def _below(view: View, ours: Place, column: str, bound: float) -> Item:
    # Whatever the paper's own times are: it gives one alone.
    metric = their_metric(column, ours.metric) if view.kind in _RUNS else ours.metric
    theirs = Place(ours.exhibit, ours.row, column, metric)
    label = f"{METRIC_LABELS[ours.metric]} of {label_of(ours.row)}"
    if view.look(theirs).is_oom:
        return Item(label, reason=f"no ratio: {label_of(column)} ran out of memory")
    if view.look(ours).is_oom:
        return Item(label, NOT_REPRODUCED, reason="TPI-LLM ran out of memory")
    ratio = view.ratio(ours, theirs)
    if ratio is None:
        return Item(label, UNDECIDED, reason=view.why_no_ratio(ours, theirs))
    saved = Spread(1 - ratio.median, 1 - ratio.high, 1 - ratio.low, ratio.n)
    verdict = at_least(saved, bound - _ROUNDING)
    figure = f"{less(saved)}: {_time(view, ours)} against {_time(view, theirs)}"
    return Item(label, verdict, figure + repeats(ratio), across(verdict, percent(bound)))


def falls_over(view: View, exhibit: str, rows: Sequence[str], bound: float) -> Finding:
    """Whether latency falls by at least `bound` from each row to the next."""
    items = []
    for before, after in pairwise(rows):
        ratio = view.ratio(latency(exhibit, after), latency(exhibit, before))
        label = f"from {before} to {after}"
        if ratio is None:
            reason = _missing_rows(view, exhibit, (before, after))
            items.append(Item(label, UNDECIDED, reason=reason))
            continue
        verdict = at_most(ratio, 1 - bound)
        figure = f"{in_times(ratio)} the latency{repeats(ratio)}"
        items.append(Item(label, verdict, figure, across(verdict, f"{1 - bound:g} times")))
    return joined(items)


def hardly_falls(view: View, exhibit: str, rows: Sequence[str], bound: float) -> Finding:
    """Whether latency falls by at most `bound` from the first row to the last."""
    first, last = rows[0], rows[-1]
    label = f"from {first} to {last}"
    ratio = view.ratio(latency(exhibit, last), latency(exhibit, first))
    if ratio is None:
        reason = _missing_rows(view, exhibit, (first, last))
        return joined([Item(label, UNDECIDED, reason=reason)])
    verdict = at_least(ratio, 1 - bound)
    figure = f"{in_times(ratio)} the latency{repeats(ratio)}"
    return joined([Item(label, verdict, figure, across(verdict, f"{1 - bound:g} times"))])


def scheduler_cost(view: View, rows: Sequence[str]) -> Finding:
    """Whether latency is higher with the scheduler, for every model that fits without it."""
    return joined([_cost(view, row) for row in rows])


def _cost(view: View, row: str) -> Item:
    on, off = (Place("table1", row, column, "token_latency_s") for column in ("on", "off"))
    label = label_of(row)
    if view.look(off).is_oom:
        return Item(label, reason="does not fit without the scheduler")
    ratio = view.ratio(on, off)
    if ratio is None:
        return Item(label, UNDECIDED, reason=view.why_no_ratio(on, off))
    verdict = at_least(ratio, 1 + _ROUNDING)
    figure = f"{in_times(ratio)}: {_time(view, on)} against {_time(view, off)}{repeats(ratio)}"
    return Item(label, verdict, figure, across(verdict, "1"))


def latency(exhibit: str, row: str) -> Place:
    """Where TPI-LLM's token latency stands in a figure over some x."""
    return Place(exhibit, row, _TPI, "token_latency_s")


def repeats(value: Spread) -> str:
    """` (1 repeat: tokens alone vary)` where an interval knows less than it shows."""
    if value.n == 1 and value.low != value.high:
        return " (1 repeat: the interval is of its tokens alone)"
    return f" (n={value.n})" if value.n else ""


def across(verdict: str, bound: str) -> str:
    """The reason of an item whose interval holds the bound."""
    return f"the interval holds {bound}" if verdict == UNDECIDED else ""


def _missing_rows(view: View, exhibit: str, rows: Sequence[str]) -> str:
    return ", ".join(_reasons(view, exhibit, rows)) or "measured on different backends"


def _reasons(view: View, exhibit: str, rows: Sequence[str]) -> Iterator[str]:
    for row in rows:
        seen = view.look(latency(exhibit, row))
        if not seen.has_value:
            yield f"{row} {seen.reason}"


def _time(view: View, place: Place) -> str:
    value = view.value(place)
    return format_seconds(value.median) if value else "nothing"
