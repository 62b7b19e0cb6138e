"""Cells as CSV, one line each, with every field.

Values are SI and read back to the same float. A fact that is not a number stands in `value` as text
with the metric `text`. Where there is no value, `word` says why.
"""

import csv
import io
from collections.abc import Iterable

from results.paper.cell import METRICS, Cell
from results.paper.cells.result_set import ResultSet
from results.paper.cells.substitutions import stand_in_name

COLUMNS = (
    *("exhibit", "row", "column", "metric", "evidence", "value", "low", "high", "unit", "n"),
    *("scale", "backend", "dilation", "run_id", "source", "word", "detail", "stand_in"),
)


def cells_csv(cells: Iterable[Cell], results: ResultSet) -> str:
    """A header and one line for each cell; the last field names what ran instead of the paper's."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(_row(cell, results) for cell in cells)
    return out.getvalue()


def _row(cell: Cell, results: ResultSet) -> tuple[object, ...]:
    place = cell.place
    return (
        *(place.exhibit, place.row, place.column, place.metric, cell.evidence),
        *(cell.text if cell.value is None else repr(cell.value), _number(cell.low)),
        *(_number(cell.high), METRICS[place.metric], cell.n, cell.scale, cell.backend),
        *(f"{cell.dilation:g}", cell.run_id, cell.source, cell.missing_reason, cell.detail),
        stand_in_name(results, cell) if cell.ran else "",
    )


def _number(value: float | None) -> str:
    return "" if value is None else repr(value)
