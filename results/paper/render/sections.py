"""Cells of a book laid into the shape of an exhibit, so that no place is left without a word.

A `Section` is a block of columns; its groups are the paper's rows, and each group has one line a
kind of source: the paper's value first, then what was measured, simulated and computed. Lines are
never joined. Read `sections_of` first.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from results.paper.cell import Cell, Place
from results.paper.cells.result_set import ResultSet
from results.paper.render.filling import MEASURED, REPORTED, Filling, Source, source_of
from results.paper.render.layouts import (
    FIRST,
    LAYOUTS,
    LOADS_FIRST,
    METRIC_LABELS,
    Layout,
    label_of,
)


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table: a column of the paper and one metric."""

    name: str
    metric: str
    title: str


@dataclass(frozen=True, slots=True)
class Line:
    """The cells of one row from one source; each place has at least one cell."""

    label: str
    cells: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True, slots=True)
class Group:
    """One row of the paper: its lines, the paper's first."""

    row: str
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class Section:
    """A block of columns with all rows; `heading` names its metrics."""

    heading: str
    columns: tuple[Column, ...]
    groups: tuple[Group, ...]

    def cells(self) -> Iterator[Cell]:
        """Every cell as it is shown."""
        for group in self.groups:
            for line in group.lines:
                for cells in line.cells:
                    yield from cells


def sections_of(book: ResultSet, exhibit: str) -> tuple[Section, ...]:
    """All sections of an exhibit, every place filled."""
    layout = LAYOUTS[exhibit]
    if not layout.has_table:
        return ()
    cells = list(book.exhibit(exhibit))
    rows = _ordered(layout.rows, (cell.place.row for cell in cells))
    parts = layout.sections or ((),)
    return tuple(
        _section(exhibit, metrics, rows, _columns(layout, metrics, cells), cells)
        for metrics in parts
    )


def shown_cells(book: ResultSet, exhibit: str) -> list[Cell]:
    """Every cell of an exhibit as it is shown, words for what is missing among them."""
    if not LAYOUTS[exhibit].has_table:
        return list(book.exhibit(exhibit))
    return [cell for section in sections_of(book, exhibit) for cell in section.cells()]


def _section(
    exhibit: str,
    choices: Sequence[Sequence[str]],
    rows: Sequence[str],
    columns: Sequence[Column],
    cells: Sequence[Cell],
) -> Section:
    layout, wanted = LAYOUTS[exhibit], {(column.name, column.metric) for column in columns}
    names = {metric for _, metric in wanted}
    mine = [
        cell
        for cell in cells
        if cell.place.metric in names
        and (layout.joins_columns or (cell.place.column, cell.place.metric) in wanted)
    ]
    filling, sources = Filling.of(layout, cells), _sources(layout, mine)
    groups = []
    for row in rows:
        places = [Place(exhibit, row, column.name, column.metric) for column in columns]
        lines = (
            Line(_label(source, mine), tuple(filling.at(source, place) for place in places))
            for source in sources
        )
        groups.append(Group(row, tuple(lines)))
    heading = ", ".join(METRIC_LABELS.get(choice[0], choice[0]) for choice in choices)
    return Section(heading[:1].upper() + heading[1:], tuple(columns), tuple(groups))


def _sources(layout: Layout, cells: Iterable[Cell]) -> list[Source]:
    found = {source_of(cell) for cell in cells} | {REPORTED}
    if layout.is_run and not any(source.rank == MEASURED.rank for source in found):
        found.add(MEASURED)
    return sorted(found)


def _label(source: Source, cells: Iterable[Cell]) -> str:
    """A line's name, with the scale of what was measured: what is simulated is of full size."""
    scales = (cell.scale for cell in cells if cell.scale and source_of(cell) == source)
    return ", ".join(
        [source.label, *(dict.fromkeys(scales) if source.rank == MEASURED.rank else ())]
    )


def _columns(
    layout: Layout, metrics: Sequence[Sequence[str]], cells: Sequence[Cell]
) -> list[Column]:
    if not metrics:
        return _fact_columns(layout, cells)
    names = {name for choice in metrics for name in choice}
    mine = [cell for cell in cells if cell.place.metric in names]
    columns = []
    found = () if layout.joins_columns else (cell.place.column for cell in mine)
    for name in _ordered(layout.columns, found):
        chosen = [metric for choice in metrics for metric in _chosen(choice, name, mine)]
        for metric in chosen:
            title = f"{label_of(name)}: {METRIC_LABELS.get(metric, metric)}"
            if layout.joins_columns:
                title = METRIC_LABELS.get(metric, metric)
            columns.append(Column(name, metric, title if len(chosen) > 1 else label_of(name)))
    return columns


def _chosen(choice: Sequence[str], column: str, cells: Iterable[Cell]) -> Sequence[str]:
    """The metric that the paper's values of a column have; without any, the usual one.

    Both where the paper does not say which of two its values are.
    """
    if choice == FIRST and column in LOADS_FIRST:
        return choice
    reported = {
        cell.place.metric
        for cell in cells
        if cell.evidence == "reported" and cell.place.column == column
    }
    # Without the scheduler the paper's time to first token has loading in it.
    usual = FIRST[1] if choice == FIRST and column == "off" else choice[0]
    return [next((metric for metric in choice if metric in reported), usual)]


def _fact_columns(layout: Layout, cells: Sequence[Cell]) -> list[Column]:
    columns = []
    for name in _ordered(layout.columns, (cell.place.column for cell in cells)):
        metrics = dict.fromkeys(c.place.metric for c in cells if c.place.column == name)
        columns += [Column(name, metric, label_of(name)) for metric in metrics or ("text",)]
    return columns


def _ordered(known: Sequence[str], found: Iterable[str]) -> list[str]:
    """The known names in their order, then what else was found: numbers by size."""
    more = set(found) - set(known)
    return [*known, *sorted(more, key=_by_size)]


def _by_size(name: str) -> tuple[float, str]:
    try:
        return float(name), name
    except ValueError:
        return float("inf"), name
