"""Simulated beside measured as Markdown: one configuration a line, the error of each metric.

A side without a number says why; such a line has no error and counts in no median.
"""

from collections.abc import Iterator, Mapping, Sequence
from statistics import median

from results.paper.cell import VALIDATION, Cell, Place
from results.paper.cells.result_set import ResultSet
from results.paper.cells.validation import PAIRED, Pair, pairs_of
from results.paper.render.cell_format import escaped, format_cell, markdown_of
from results.paper.render.layouts import METRIC_LABELS, VALIDATION_TITLE, label_of
from results.records.comparison_table import aligned
from tpi.units import counted

_BAND = 0.25  # what a simulated time may be off to be of use


def markdown(results: ResultSet) -> str:
    """Every configuration that the simulator is checked on, then the errors of each metric."""
    pairs = {pair.place: pair for pair in pairs_of(results) if pair.is_check}
    places = dict.fromkeys(
        (cell.place.row, cell.place.column) for cell in results.exhibit(VALIDATION)
    )
    lines = [f"### {VALIDATION_TITLE}", ""]
    if not places:
        return "\n".join([*lines, "Nothing was measured or simulated to check it."]) + "\n"
    head = (each for m in PAIRED for each in (METRIC_LABELS[m], "simulated", "error"))
    grid = [("configuration", "system", *head)]
    for row, column in places:
        found = (Place(VALIDATION, row, column, metric) for metric in PAIRED)
        cells = [each for place in found for each in _cells(results, place, pairs)]
        grid.append((escaped(row), escaped(label_of(column)), *cells))
    both = len({(place.row, place.column) for place in pairs})
    lines += [*aligned(grid), ""]
    lines.append(f"{counted(len(places), 'configuration')}, {both} with both numbers. Errors,")
    lines += ["simulated / measured - 1:", ""]
    lines += [f"- {line}" for line in summary([*pairs.values()])]
    return "\n".join(lines) + "\n"


def summary(pairs: Sequence[Pair]) -> Iterator[str]:
    """Median and worst error of each metric that has pairs, a line each."""
    for metric in PAIRED:
        mine = [pair for pair in pairs if pair.place.metric == metric]
        if mine:
            worst, sizes = max(mine, key=lambda p: abs(p.error)), [abs(p.error) for p in mine]
            where = f"{worst.place.row}, {label_of(worst.place.column)}"
            name = METRIC_LABELS[metric]
            middle = f"{100 * median(sizes):.1f} %"
            close = sum(size <= _BAND for size in sizes)
            within = f"{close} of {len(mine)} within {100 * _BAND:g} %"
            yield f"{name}: median {middle}, worst {percent(worst.error)} ({where}), {within}"


def percent(error: float) -> str:
    """`+1.2 %`."""
    return f"{100 * error:+.1f} %"


def _cells(results: ResultSet, place: Place, pairs: Mapping[Place, Pair]) -> tuple[str, str, str]:
    if pair := pairs.get(place):
        return _text(pair.measured), _text(pair.simulated), percent(pair.error)
    sides = (results.of(place, evidence) for evidence in ("measured", "simulated"))
    measured, simulated = (" / ".join(map(_text, cells)) for cells in sides)
    return measured, simulated, ""


def _text(cell: Cell) -> str:
    return escaped(markdown_of(format_cell(cell)))
