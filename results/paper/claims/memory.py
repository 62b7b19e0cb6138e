"""Rules of the claims about peak memory: the 70B model, over devices, Proposition 5, out of memory.

Every rule takes a `View` of one kind of evidence and gives `Item`s.
"""

from collections.abc import Iterable, Sequence

from results.paper.cell import Place
from results.paper.claims.evidence import View
from results.paper.claims.verdict import (
    NOT_REPRODUCED,
    REPRODUCED,
    UNDECIDED,
    Item,
    at_least,
    at_most,
    item_of,
    less,
    percent,
    point,
    saved,
)
from results.paper.render.layouts import MODELS, label_of
from tpi.model_config import load_preset
from tpi.planner.propositions import published_peak_bytes
from tpi.units import format_bytes

DEVICES = (2, 4, 6, 8)
WINDOWS = {"table2": 2, "table6": 4}
_METRIC = "peak_memory_bytes"


def memory_place(exhibit: str, row: str, column: str) -> Place:
    """Where a peak stands."""
    return Place(exhibit, row, column, _METRIC)


def peaks_over_devices(exhibits: Iterable[str]) -> tuple[Place, ...]:
    """The peaks of every model with the scheduler, over devices."""
    return tuple(
        memory_place(exhibit, row, f"on/{count}")
        for exhibit in exhibits
        for row in MODELS
        for count in DEVICES
    )


def saves_memory(view: View, row: str, bound: float, most_bytes: float) -> list[Item]:
    """Whether the scheduler's peak is `bound` below that without, and at most so many bytes."""
    items = []
    for exhibit, off, on in (("table1", "off", "on"), ("table2", "off/8", "on/8")):
        places = memory_place(exhibit, row, on), memory_place(exhibit, row, off)
        items.append(_saving(view, f"Table {exhibit[-1]}, off to on", *places, bound))
    # Both tables have the same setting: one number is enough.
    known = [item for item in items if item.figure] or items
    return [*known, _peak(view, row, most_bytes)]


def _saving(view: View, label: str, on: Place, off: Place, bound: float) -> Item:
    if view.look(on).is_oom:
        return Item(label, NOT_REPRODUCED, "out of memory with the scheduler")
    return item_of(
        label,
        view.ratio(on, off),
        lambda ratio: at_least(saved(ratio), bound),
        lambda ratio: f"{less(saved(ratio))}: {_bytes(view, on)} against {_bytes(view, off)}",
        view.why_no_ratio(on, off),
    )


def _peak(view: View, row: str, most_bytes: float) -> Item:
    label = "peak with the scheduler"
    places = memory_place("table1", row, "on"), memory_place("table2", row, "on/8")
    found = [(value.median, place, value) for place in places if (value := view.value(place))]
    if any(view.look(place).is_oom for place in places):
        return Item(label, NOT_REPRODUCED, "out of memory")
    if not found:
        return Item(label, UNDECIDED, reason=view.why_no_ratio(*places))
    _, place, value = max(found)
    return Item(label, at_most(value, most_bytes), _bytes(view, place))


def flat_over_devices(view: View, rows: Sequence[str], bound: float) -> list[Item]:
    """Whether the largest peak over 2 to 8 devices is at most `bound` above the smallest."""
    return [_flatness(view, row, bound) for row in rows]


def _flatness(view: View, row: str, bound: float) -> Item:
    places = {n: memory_place("table2", row, f"on/{n}") for n in DEVICES}
    found = {n: view.value(place) for n, place in places.items()}
    values = {n: value for n, value in found.items() if value and value.median > 0}
    missing = view.why_no_ratio(*places.values()) if len(values) < len(places) else ""
    if not values:
        return Item(label_of(row), UNDECIDED, reason=missing)
    peaks = [value.median for value in values.values()]
    rise = max(peaks) / min(peaks) - 1
    over = ", ".join(map(str, values))
    figure = f"{percent(rise)} apart: {', '.join(map(format_bytes, peaks))} over {over} devices"
    return _partial_item(label_of(row), rise, bound, figure, missing)


def _partial_item(label: str, value: float, bound: float, figure: str, missing: str) -> Item:
    """One disproof suffices; what holds for a part alone is undecided."""
    verdict = at_most(point(value), bound)
    return Item(label, UNDECIDED if missing and verdict == REPRODUCED else verdict, figure, missing)


def follows_proposition_5(view: View, bound: float) -> list[Item]:
    """Whether one gamma fits every cell of Tables 2 and 6, none more than `bound` away."""
    gammas = {exhibit: _gammas(view, exhibit) for exhibit in WINDOWS}
    count = len(MODELS) * len(DEVICES)
    items = [
        _fit(f"Table {exhibit[-1]} (window {window})", gammas[exhibit], count, bound)
        for exhibit, window in WINDOWS.items()
    ]
    both = [pair for found in gammas.values() for pair in found]
    return [*items, _fit("both tables, one gamma", both, 2 * count, bound)]


def _gammas(view: View, exhibit: str) -> list[tuple[str, float]]:
    """(model, gamma) of each cell, as the master's equation (7) gives them; it is the largest."""
    found = []
    for place in peaks_over_devices([exhibit]):
        if value := view.value(place):
            share = 1 / int(place.column.removeprefix("on/"))
            model, window = load_preset(place.row), WINDOWS[exhibit]
            blocks = published_peak_bytes(model, share, window, is_master=True)
            found.append((place.row, value.median / blocks))
    return found


def _fit(label: str, gammas: Sequence[tuple[str, float]], count: int, bound: float) -> Item:
    """One factor for all cells that are there, of `count`: more cells never fit better."""
    missing = f"of {count} cells {len(gammas)} are there" if len(gammas) < count else ""
    if not gammas:
        return Item(label, UNDECIDED, reason=missing)
    low, high = min(gammas, key=lambda g: g[1]), max(gammas, key=lambda g: g[1])
    # The factor whose worst cell is nearest: as far from the smallest as from the largest, each
    # error relative to its cell as everywhere.
    gamma = 2 * high[1] * low[1] / (high[1] + low[1])
    worst = gamma / low[1] - 1
    figure = (
        f"gamma {low[1]:.2f} ({label_of(low[0])}) to {high[1]:.2f} ({label_of(high[0])}) over "
        f"{len(gammas)} cells; the best one, {gamma:.2f}, is {percent(worst)} off at its worst"
    )
    return _partial_item(label, worst, bound, figure, missing)


def runs_out_of_memory(view: View, place: Place) -> list[Item]:
    """Whether a run ends because memory ran out."""
    seen = view.look(place)
    label = f"{label_of(place.column)}, {label_of(place.row)}"
    if seen.is_oom:
        return [Item(label, REPRODUCED, "out of memory")]
    if seen.has_value and seen.cell is not None:
        return [Item(label, NOT_REPRODUCED, f"runs: {seen.cell.value:.3g} s a token")]
    return [Item(label, UNDECIDED, reason=seen.reason)]


def _bytes(view: View, place: Place) -> str:
    value = view.value(place)
    return format_bytes(value.median) if value else "nothing"
