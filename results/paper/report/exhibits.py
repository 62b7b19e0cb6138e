"""The report's tables and figures: the paper's value above ours, each kind in its own colour.

Rows, columns and values are those of every other rendering.
"""

import base64
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from results.paper.cell import EXHIBITS, Cell
from results.paper.cells.result_set import ResultSet
from results.paper.cells.substitutions import stand_in_name
from results.paper.render.cell_format import format_cell, mark_dilation
from results.paper.render.footnotes import Footnotes, below
from results.paper.render.layouts import title_of
from results.paper.render.sections import sections_of
from tpi.errors import ResourceError, map_errors

TABLES = tuple(name for name in EXHIBITS if name.startswith("table"))
FIGURES = tuple(name for name in EXHIBITS if name.startswith("figure"))


class ShownValue(NamedTuple):
    """One value, or why there is none; `kind` chooses its colour, `origin` is its tooltip."""

    text: str
    kind: str
    origin: str


class ShownExhibit:
    """A table or figure; notes get their numbers in the order in which cells are shown."""

    def __init__(self, results: ResultSet, name: str, svg: bytes | None = None) -> None:
        self.name, self.title = name, title_of(name)
        self.sections = sections_of(results, name)
        # As an image: no name or style in it meets those of another, and nothing in it runs.
        data = base64.b64encode(svg or b"").decode()
        # A data URI; empty where there is no drawing.
        self.image = f"data:image/svg+xml;base64,{data}" if svg is not None else ""
        self._results, self._notes = results, Footnotes(results)

    def values(self, cells: Iterable[Cell]) -> list[ShownValue]:
        """What stands in one cell of the table, each value once."""
        return list(dict.fromkeys(self._value(cell) for cell in cells))

    def numbers(self, cells: Iterable[Cell]) -> str:
        """The numbers of the notes of one cell."""
        return self._notes.numbers(cells)

    def notes(self) -> list[str]:
        """What stands below, once all cells are shown."""
        texts = [f"({number}) {text}" for number, text in enumerate(self._notes.texts, 1)]
        return [*texts, *below(self._results, self.name)]

    def _value(self, cell: Cell) -> ShownValue:
        formatted = format_cell(cell, stand_in_name(self._results, cell))
        dilation = mark_dilation(cell.dilation) if formatted.kind == "dilated" else ""
        text = " ".join(filter(None, (formatted.text, dilation, formatted.stand_in)))
        runs, scale = f"n={cell.n}" if cell.n else "", cell.scale if cell.ran else ""
        origin = (cell.evidence, scale, cell.backend, runs, cell.source, cell.run_id)
        return ShownValue(text, formatted.kind, ", ".join(filter(None, origin)))


def draw_all(results: ResultSet, figures_dir: Path | None) -> tuple[Mapping[str, bytes], list[str]]:
    """SVG of every figure, rendered before or drawn here; a line for each that failed."""
    images: dict[str, bytes] = {}
    problems = []
    for name in FIGURES:
        try:
            if figures_dir is None:
                images[name] = _draw(results, name)
                continue
            path = figures_dir / f"{name}.svg"
            with map_errors({OSError: ResourceError}, f"cannot read {path}"):
                images[name] = path.read_bytes()
        except Exception as exc:  # noqa: BLE001  # one drawing's defect must not hide the rest
            problems.append(f"{name}: {exc}")
    return images, problems


def _draw(results: ResultSet, exhibit: str) -> bytes:
    # Here, since matplotlib takes a second to load.
    from results.paper.render.figures.draw import draw
    from results.paper.render.figures.style import house_style, svg_bytes

    with house_style():
        return svg_bytes(draw(results, exhibit))
