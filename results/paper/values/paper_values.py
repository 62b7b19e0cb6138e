"""What the paper reports, cell by cell: the YAML files beside this one, in SI units.

A file holds one exhibit and is laid out as the paper prints it:

    title: ...            source: Table 1         doubts: [of every cell]
    columns: [{column, metric, unit, doubt, source}, ...]      the last two where they differ
    rows:    [[row, value of column 1, value of column 2, ...], ...]

A value is a number in the column's unit, one of `MISSING_REASONS`, a text where the metric is
`text`, or `{value, doubt, source}`. What the paper does not say is `not found`, never a number.
"""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import cache, partial
from importlib import resources
from typing import Annotated

import yaml
from msgspec import Meta, Struct

from results.paper.cell import EXHIBITS, METRICS, MISSING_REASONS, Cell, Place
from tpi.decode import Text, convert, one_of
from tpi.errors import ConfigError, map_errors

# Printed unit -> SI. Exact fractions: 70 % is 0.7 and 5 ms is 0.005 to the last bit.
_UNITS: dict[str, dict[str, Fraction]] = {
    "s": {"s": Fraction(1), "ms": Fraction(1, 1000)},
    "bytes": {"GiB": Fraction(2**30), "MiB": Fraction(2**20)},
    "share": {"%": Fraction(1, 100)},
    "bit/s": {"Mbit/s": Fraction(10**6)},
    "": {"": Fraction(1), "billion": Fraction(10**9)},
}


class Column(Struct, frozen=True, forbid_unknown_fields=True):
    """What one column of a file means; `source` and `doubt` are empty where they are the file's."""

    column: Text
    metric: Annotated[str, one_of(METRICS)]
    unit: str
    source: Text | None = None
    doubt: Text | None = None


class _Doubted(Struct, frozen=True, forbid_unknown_fields=True):
    """A value with a source or a doubt of its own."""

    value: int | float | str
    source: Text | None = None
    doubt: Text | None = None


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    """One file as it is laid out."""

    title: Text
    source: Text
    columns: Annotated[tuple[Column, ...], Meta(min_length=1)]
    rows: tuple[Annotated[tuple[int | float | str | _Doubted, ...], Meta(min_length=1)], ...]
    doubts: tuple[str, ...] = ()


_Value = int | float | str | _Doubted


@cache
def reported_cells() -> tuple[Cell, ...]:
    """Every cell of the paper, by exhibit; a ConfigError names a file that is missing or unfit."""
    folder = resources.files(__package__)
    found = {path.name for path in folder.iterdir() if path.name.endswith(".yaml")}
    if stray := sorted(found - {f"{name}.yaml" for name in EXHIBITS}):
        raise ConfigError(
            f"results/paper/values/{stray[0]}: not an exhibit; expected one of {EXHIBITS}"
        )
    cells: list[Cell] = []
    for name in EXHIBITS:
        where = f"results/paper/values/{name}.yaml"
        with map_errors({OSError: ConfigError}, where):
            text = (folder / f"{name}.yaml").read_text(encoding="utf-8")
        cells += parse_exhibit(name, text, where)
    return tuple(cells)


def parse_exhibit(name: str, text: str, where: str) -> tuple[Cell, ...]:
    """The cells of one file; a ConfigError names a key, unit, word or row that does not fit."""
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as exc:  # its message has many lines
        raise ConfigError(f"{where}: not YAML: {' '.join(str(exc).split())}") from exc
    file = convert(raw, _File, where, ConfigError)
    for number, column in enumerate(file.columns, 1):
        units = _UNITS[METRICS[column.metric]]
        if column.unit not in units:
            raise ConfigError(
                f"{where}: column {number}: unit must be {' | '.join(units)}, got {column.unit!r}"
            )
    cells: dict[Place, Cell] = {}
    for row in file.rows:
        for cell in _row(name, row, file, where):
            if cell.place in cells:
                raise ConfigError(f"{where}: {cell.place} is there twice")
            cells[cell.place] = cell
    return tuple(cells.values())


def _row(exhibit: str, row: Sequence[_Value], file: _File, where: str) -> Iterator[Cell]:
    name, values = row[0], row[1:]
    if not isinstance(name, str):
        raise ConfigError(f"{where}: rows must be lists, a name first, got {name!r}")
    if len(values) != len(file.columns):
        raise ConfigError(
            f"{where}: row {name} has {len(values)} values, expected {len(file.columns)}, one a"
            " column"
        )
    for column, raw in zip(file.columns, values, strict=True):
        place = Place(exhibit, name, column.column, column.metric)
        yield _cell(place, raw, column, file, f"{where}: {place}")


def _cell(place: Place, raw: _Value, column: Column, file: _File, where: str) -> Cell:
    given = raw if isinstance(raw, _Doubted) else _Doubted(raw)
    source = given.source or column.source or file.source
    detail = "; ".join(filter(None, (given.doubt, column.doubt, *file.doubts)))
    reported, value = partial(Cell, place, "reported", source=source, detail=detail), given.value
    if value in MISSING_REASONS:
        return reported(missing_reason=str(value))
    expected = "a text or one of" if column.metric == "text" else "a number or"
    is_number = not isinstance(value, str) and 0 <= value < float("inf")
    if not (isinstance(value, str) and value if column.metric == "text" else is_number):
        raise ConfigError(f"{where}: value must be {expected} {MISSING_REASONS}, got {value!r}")
    if column.metric == "text":
        return reported(text=str(value))
    unit = _UNITS[METRICS[column.metric]][column.unit]
    return reported(value=float(Fraction(str(value)) * unit))
