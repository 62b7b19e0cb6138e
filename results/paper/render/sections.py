"""Cells laid into the shape of an exhibit, so that no place is left without a value or a reason.

A `Section` is a block of columns. Its groups are the paper's rows. Each group has one line for each
source: the paper's value first, then what was measured, simulated and computed.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from results.paper.cell import Cell, Place
from results.paper.cells.result_set import ResultSet
from results.paper.render.layouts import (
    FIRST,
    LAYOUTS,
    LOADS_FIRST,
    METRIC_LABELS,
    Layout,
    label_of,
)


@dataclass(frozen=True, slots=True, order=True)
class Source:
    """Where a line's cells come from; the order is that of the lines."""

    rank: int
    label: str


_REPORTED, _MEASURED, _SIMULATED = Source(0, "paper"), Source(1, "measured"), Source(2, "simulated")
_COMPUTED = Source(3, "computed")
_RUN_RANKS = (_MEASURED.rank, _SIMULATED.rank)


def source_of(cell: Cell) -> Source:
    """The line that a cell stands in."""
    if cell.evidence == "reported":
        return _REPORTED
    # What could not be simulated stands where the simulated number would.
    source = _SIMULATED if cell.is_simulated else _MEASURED
    if cell.evidence == "computed":
        source = _COMPUTED
    return Source(source.rank, f"{source.label}, {cell.source}") if cell.source else source


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
        lines = (line for group in self.groups for line in group.lines)
        return (cell for line in lines for cells in line.cells for cell in cells)


def sections_of(results: ResultSet, exhibit: str) -> tuple[Section, ...]:
    """All sections of an exhibit, every place filled."""
    layout = LAYOUTS[exhibit]
    if not layout.has_table:
        return ()
    cells = list(results.exhibit(exhibit))
    rows = _ordered(layout.rows, (cell.place.row for cell in cells))
    return tuple(
        _section(exhibit, metrics, rows, _columns(layout, metrics, cells), cells)
        for metrics in layout.sections or ((),)
    )


def shown_cells(results: ResultSet, exhibit: str) -> list[Cell]:
    """Every cell of an exhibit as it is shown, reasons for what is missing among them."""
    if not LAYOUTS[exhibit].has_table:
        return list(results.exhibit(exhibit))
    return [cell for section in sections_of(results, exhibit) for cell in section.cells()]


class _CellsBySource:
    """The cells of an exhibit by source and place."""

    def __init__(self, layout: Layout, cells: Iterable[Cell]) -> None:
        self._joins_columns = layout.joins_columns
        self._by_run: dict[tuple[str, ...], list[Cell]] = {}
        for cell in cells:
            self._by_run.setdefault(self._key(source_of(cell), cell.place), []).append(cell)

    def at(self, source: Source, place: Place) -> tuple[Cell, ...]:
        """At least one cell; `not run` only where no other run has a value or a reason."""
        beside = self._by_run.get(self._key(source, place), [])
        found = [cell for cell in beside if cell.place.metric == place.metric]
        if not found and source.rank in _RUN_RANKS:
            # A run without a number says why in a few metrics only: that holds for all of them.
            missing = {(c.run_id, c.missing_reason): c for c in beside if c.missing_reason}
            found = [replace(cell, place=place) for cell in missing.values()]
        known = tuple(cell for cell in found if cell.missing_reason != "not run")
        return known or tuple(found[:1]) or (_missing(source, place, was_run=bool(beside)),)

    def _key(self, source: Source, place: Place) -> tuple[str, ...]:
        return source.label, place.row, "" if self._joins_columns else place.column


def _missing(source: Source, place: Place, *, was_run: bool) -> Cell:
    evidence = ("reported", "measured", "simulated", "computed")[source.rank]
    reason, detail = "not found", ""
    if source.rank == _COMPUTED.rank:
        detail = "no formula gives it"
    elif source.rank in _RUN_RANKS:
        reason, detail = ("not found", "the run does not say") if was_run else ("not run", "")
    return Cell(place, evidence, missing_reason=reason, detail=detail)


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
    found = {source_of(cell) for cell in mine} | {_REPORTED}
    if layout.is_run and not any(source.rank == _MEASURED.rank for source in found):
        found.add(_MEASURED)
    by_source, sources = _CellsBySource(layout, cells), sorted(found)
    groups = []
    for row in rows:
        places = [Place(exhibit, row, column.name, column.metric) for column in columns]
        lines = (
            Line(_label(source, mine), tuple(by_source.at(source, place) for place in places))
            for source in sources
        )
        groups.append(Group(row, tuple(lines)))
    heading = ", ".join(METRIC_LABELS.get(choice[0], choice[0]) for choice in choices)
    return Section(heading[:1].upper() + heading[1:], tuple(columns), tuple(groups))


def _label(source: Source, cells: Iterable[Cell]) -> str:
    """A line's name, with the scale of what was measured: what is simulated is of full size."""
    scales = dict.fromkeys(c.scale for c in cells if c.scale and source_of(c) == source)
    return ", ".join([source.label, *(scales if source.rank == _MEASURED.rank else ())])


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
    """The metrics of the paper's values in a column; two where it may or may not count loading."""
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
