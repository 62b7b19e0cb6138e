"""Cells as CSV, one line each, every field of it: for whoever wants the numbers and not a table.

Values are SI and printed so that they read back to the same float; a fact that is no number stands
in `value` as text with the metric `text`. A word stands in `word`, and `value` is empty then.
"""

import csv
import io
from collections.abc import Iterable

from results.paper.cell import METRICS, Cell
from results.paper.cells.result_set import ResultSet
from results.paper.cells.substitutions import stand_in_name
from results.paper.render.cell_format import ran

COLUMNS = (
    *("exhibit", "row", "column", "metric", "evidence", "value", "low", "high", "unit", "n"),
    *("scale", "backend", "dilation", "run_id", "source", "word", "detail", "stand_in"),
)


def cells_csv(cells: Iterable[Cell], book: ResultSet) -> str:
    """A header and one line a cell; the last field says what ran in the place of the paper's."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(_row(cell, book) for cell in cells)
    return out.getvalue()


def _row(cell: Cell, book: ResultSet) -> tuple[object, ...]:
    place = cell.place
    return (
        *(place.exhibit, place.row, place.column, place.metric, cell.evidence),
        *(cell.text if cell.value is None else repr(cell.value), _number(cell.low)),
        *(_number(cell.high), METRICS[place.metric], cell.n, cell.scale, cell.backend),
        *(f"{cell.dilation:g}", cell.run_id, cell.source, cell.word, cell.detail),
        stand_in_name(book, cell) if ran(cell) else "",
    )


def _number(value: float | None) -> str:
    return "" if value is None else repr(value)
