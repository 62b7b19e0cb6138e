"""Books made by hand: one line a cell."""

from results.paper.cell import Cell, Place
from results.paper.cells.result_set import ResultSet
from results.paper.claims.evidence import MEASURED, View

GIB = 1 << 30


def cell(where: str, value: float | str, evidence: str = "measured", **changes) -> Cell:
    """`cell("table3 llama2-3b tpi ttft_s", 2.5)`; a text is a word, `_` in a row a space."""
    given = {"missing_reason": value} if isinstance(value, str) else {"value": float(value)}
    backend = {"measured": "docker", "simulated": "sim"}.get(evidence, "")
    scale = "small" if backend else ""
    values = {"backend": backend, "scale": scale, **given, **changes}
    exhibit, row, column, metric = where.split()
    return Cell(Place(exhibit, row.replace("_", " "), column, metric), evidence, **values)


def book(*cells: Cell, **changes) -> ResultSet:
    by_place: dict[Place, tuple[Cell, ...]] = {}
    for each in cells:
        by_place[each.place] = (*by_place.get(each.place, ()), each)
    return ResultSet(**({"scale": "small", "cells": by_place} | changes))


def view(*cells: Cell, kind=MEASURED) -> View:
    return View(book(*cells), kind)


def known(value):
    """A value that must be there."""
    assert value is not None
    return value
