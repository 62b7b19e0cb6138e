"""What the paper reports, cell by cell: the files of `paper/`, checked and in SI units.

A file holds one exhibit and is laid out as the paper prints it, so that it can be read beside it:

    title: ...            source: Table 1         doubts: [of every cell]
    columns: [{column, metric, unit, doubt, source}, ...]      the last two where they differ
    rows:    [[row, value of column 1, value of column 2, ...], ...]

A value is a number in the column's unit, one of `WORDS`, a text where the metric is `text`, or
`{value, doubt, source}`. What the paper does not say is `not found`, never a number. Read
`reported_cells`, then `parse_exhibit`.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from importlib import resources

import yaml

from results.paper.cell import EXHIBITS, METRICS, WORDS, Cell, Place
from tpi.errors import ConfigError, map_errors
from tpi.program.spec import Fields

# Printed unit -> SI. Exact fractions: 70 % is 0.7 and 5 ms is 0.005 to the last bit.
_UNITS: dict[str, dict[str, Fraction]] = {
    "s": {"s": Fraction(1), "ms": Fraction(1, 1000)},
    "bytes": {"GiB": Fraction(2**30), "MiB": Fraction(2**20)},
    "share": {"%": Fraction(1, 100)},
    "bit/s": {"Mbit/s": Fraction(10**6)},
    "": {"": Fraction(1), "billion": Fraction(10**9)},
}


@dataclass(frozen=True, slots=True)
class Column:
    """What one column of a file means; `source` is empty where it is the file's."""

    name: str
    metric: str
    factor: Fraction
    source: str
    doubts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Exhibit:
    """One file."""

    name: str
    title: str
    source: str
    doubts: tuple[str, ...]
    cells: tuple[Cell, ...]


@functools.cache
def load_exhibits() -> tuple[Exhibit, ...]:
    """Read every exhibit, in the order of `EXHIBITS`.

    Raises:
        ConfigError: A file is missing or something in it does not fit.
    """
    folder = resources.files("results") / "paper"
    found = {path.name for path in folder.iterdir() if path.name.endswith(".yaml")}
    stray = sorted(found - {f"{name}.yaml" for name in EXHIBITS})
    if stray:
        raise ConfigError(f"results/paper/{stray[0]}: not an exhibit; expected one of {EXHIBITS}")
    exhibits = []
    for name in EXHIBITS:
        where = f"results/paper/{name}.yaml"
        with map_errors({OSError: ConfigError}, where):
            text = (folder / f"{name}.yaml").read_text(encoding="utf-8")
        exhibits.append(parse_exhibit(name, text, where))
    return tuple(exhibits)


def reported_cells() -> tuple[Cell, ...]:
    """Every cell that the paper has, with its source and doubts; words where it says nothing."""
    return tuple(cell for exhibit in load_exhibits() for cell in exhibit.cells)


def parse_exhibit(name: str, text: str, where: str) -> Exhibit:
    """Check one file's text.

    Raises:
        ConfigError: Not YAML, an unknown or missing key, metric, unit or word, a row of another
            length than the columns, or one place twice.
    """
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as exc:  # its message has many lines
        raise ConfigError(f"{where}: not YAML: {' '.join(str(exc).split())}") from exc
    fields = Fields(raw, where)
    title, source = fields.take_str("title"), fields.take_str("source")
    doubts = tuple(fields.take("doubts", "a list of strings", _is_list_of_str, []))
    columns = [
        _column(each, f"{where}: column {number}")
        for number, each in enumerate(fields.take("columns", "a list", _is_full_list), 1)
    ]
    cells: dict[Place, Cell] = {}
    for row in fields.take("rows", "a list of lists, a name first", _is_list_of_rows):
        for cell in _row(name, row, columns, (source, doubts), where):
            if cell.place in cells:
                raise ConfigError(f"{where}: {cell.place} is there twice")
            cells[cell.place] = cell
    fields.finish()
    return Exhibit(name, title, source, doubts, tuple(cells.values()))


def _column(raw: object, where: str) -> Column:
    fields = Fields(raw, where)
    name = fields.take_str("column")
    metric = fields.take_choice("metric", tuple(METRICS))
    units = _UNITS[METRICS[metric]]
    unit = fields.take_choice("unit", tuple(units))
    source, doubt = fields.take_str("source", ""), fields.take_str("doubt", "")
    fields.finish()
    return Column(name, metric, units[unit], source, (doubt,) if doubt else ())


def _row(
    exhibit: str,
    row: list[object],
    columns: list[Column],
    shared: tuple[str, tuple[str, ...]],
    where: str,
) -> list[Cell]:
    name, values = str(row[0]), row[1:]
    if len(values) != len(columns):
        raise ConfigError(
            f"{where}: row {name} has {len(values)} values, expected {len(columns)}, one a column"
        )
    cells = []
    for column, raw in zip(columns, values, strict=True):
        place = Place(exhibit, name, column.name, column.metric)
        cells.append(_cell(place, raw, column, shared, f"{where}: {place}"))
    return cells


def _cell(
    place: Place, raw: object, column: Column, shared: tuple[str, tuple[str, ...]], where: str
) -> Cell:
    fields = Fields(raw if isinstance(raw, Mapping) else {"value": raw}, where)
    expected = f"a text or one of {WORDS}" if column.metric == "text" else f"a number or {WORDS}"
    value = fields.take("value", expected, _is_text if column.metric == "text" else _is_value)
    source = fields.take_str("source", column.source or shared[0])
    doubt = fields.take_str("doubt", "")
    fields.finish()
    detail = "; ".join((*((doubt,) if doubt else ()), *column.doubts, *shared[1]))
    if value in WORDS:
        return Cell(place, "reported", word=value, source=source, detail=detail)
    if column.metric == "text":
        return Cell(place, "reported", text=value, source=source, detail=detail)
    number = float(Fraction(str(value)) * column.factor)
    return Cell(place, "reported", value=number, source=source, detail=detail)


def _is_value(value: object) -> bool:
    # Negative, endless and no numbers are nothing that a paper's table holds.
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value in WORDS or (is_number and 0 <= float(str(value)) < float("inf"))


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def _is_list_of_str(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_full_list(value: object) -> bool:
    return isinstance(value, list) and bool(value)


def _is_list_of_rows(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(row, list) and row and isinstance(row[0], str) for row in value
    )
