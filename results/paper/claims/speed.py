"""Rules of the claims about time: how far below other systems, and over devices, cores, bandwidth.

Every rule takes a `View` of one kind of evidence and gives `Item`s.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise

from results.paper.cell import Place
from results.paper.claims.evidence import MEASURED, SIMULATED, View
from results.paper.claims.verdict import (
    NOT_REPRODUCED,
    Item,
    at_least,
    at_most,
    in_times,
    item_of,
    less,
    percent,
    repeats,
    saved,
)
from results.paper.render.layouts import LOADS_FIRST, METRIC_LABELS, label_of
from tpi.units import format_seconds

SPEED_METRICS = ("ttft_s", "token_latency_s")
_TPI = "tpi"
# Of two numbers with two digits: 6 of 30 s are 80 % less.
_ROUNDING = 1e-9


def speed_places(exhibit: str, rows: Sequence[str], column: str) -> tuple[Place, ...]:
    """The places that `below` needs."""
    return tuple(
        Place(exhibit, row, name, metric if name == _TPI else their_metric(column, metric))
        for row in rows
        for metric in SPEED_METRICS
        for name in (_TPI, column)
    )


def their_metric(column: str, metric: str) -> str:
    """The metric of another system that TPI-LLM's is compared with: TTFT includes its loading."""
    loads = metric == "ttft_s" and column in LOADS_FIRST
    return "first_token_s" if loads else metric


def below(view: View, exhibit: str, rows: Sequence[str], column: str, bound: float) -> list[Item]:
    """Whether TPI-LLM's times are at least `bound` below another system's, for every model."""
    ours = [Place(exhibit, row, _TPI, metric) for row in rows for metric in SPEED_METRICS]
    return [_below(view, place, column, bound) for place in ours]


def _below(view: View, ours: Place, column: str, bound: float) -> Item:
    # The paper gives one time alone, with loading or without.
    is_run = view.kind in (MEASURED, SIMULATED)
    metric = their_metric(column, ours.metric) if is_run else ours.metric
    theirs = Place(ours.exhibit, ours.row, column, metric)
    label = f"{METRIC_LABELS[ours.metric]} of {label_of(ours.row)}"
    if view.look(theirs).is_oom:
        return Item(label, reason=f"no ratio: {label_of(column)} ran out of memory")
    if view.look(ours).is_oom:
        return Item(label, NOT_REPRODUCED, reason="TPI-LLM ran out of memory")
    times = f"{_time(view, ours)} against {_time(view, theirs)}"
    return item_of(
        label,
        view.ratio(ours, theirs),
        lambda ratio: at_least(saved(ratio), bound - _ROUNDING),
        lambda ratio: f"{less(saved(ratio))}: {times}{repeats(ratio)}",
        view.why_no_ratio(ours, theirs),
        percent(bound),
    )


def falls_over(view: View, exhibit: str, rows: Sequence[str], bound: float) -> list[Item]:
    """Whether latency falls by at least `bound` from each row to the next."""
    rule = partial(at_most, bound=1 - bound)
    return [_step(view, exhibit, pair, rule, bound) for pair in pairwise(rows)]


def hardly_falls(view: View, exhibit: str, rows: Sequence[str], bound: float) -> list[Item]:
    """Whether latency falls by at most `bound` from the first row to the last."""
    rule = partial(at_least, bound=1 - bound)
    return [_step(view, exhibit, (rows[0], rows[-1]), rule, bound)]


def _step(
    view: View, exhibit: str, rows: tuple[str, str], rule: partial[str], bound: float
) -> Item:
    before, after = rows
    looks = {row: view.look(latency(exhibit, row)) for row in rows}
    reasons = [f"{row} {seen.reason}" for row, seen in looks.items() if not seen.has_value]
    return item_of(
        f"from {before} to {after}",
        view.ratio(latency(exhibit, after), latency(exhibit, before)),
        rule,
        lambda ratio: f"{in_times(ratio)} the latency{repeats(ratio)}",
        ", ".join(reasons) or "measured on different backends",
        f"{1 - bound:g} times",
    )


def scheduler_cost(view: View, rows: Sequence[str]) -> list[Item]:
    """Whether latency is higher with the scheduler, for every model that fits without it."""
    return [_cost(view, row) for row in rows]


def on_and_off(row: str) -> tuple[Place, Place]:
    """Where token latency with and without the scheduler stands."""
    on = Place("table1", row, "on", "token_latency_s")
    return on, replace(on, column="off")


def _cost(view: View, row: str) -> Item:
    on, off = on_and_off(row)
    if view.look(off).is_oom:
        return Item(label_of(row), reason="does not fit without the scheduler")
    times = f"{_time(view, on)} against {_time(view, off)}"
    return item_of(
        label_of(row),
        view.ratio(on, off),
        partial(at_least, bound=1 + _ROUNDING),
        lambda ratio: f"{in_times(ratio)}: {times}{repeats(ratio)}",
        view.why_no_ratio(on, off),
        "1",
    )


def latency(exhibit: str, row: str) -> Place:
    """Where TPI-LLM's token latency stands in a figure over some x."""
    return Place(exhibit, row, _TPI, "token_latency_s")


def _time(view: View, place: Place) -> str:
    value = view.value(place)
    return format_seconds(value.median) if value else "nothing"
