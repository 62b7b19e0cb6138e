"""The report's tables and figures: the paper's value above ours, each kind in its own colour.

Rows, columns and words are those of `results/paper/render/sections.py`, as in every other
rendering. Figures are drawn by `figures/` or taken from a folder.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from results.paper.cell import EXHIBITS, Cell
from results.paper.cells.result_set import ResultSet
from results.paper.cells.substitutions import stand_in_name
from results.paper.render.cell_format import mark_dilation, ran, show
from results.paper.render.footnotes import Footnotes, below
from results.paper.render.layouts import label_of, title_of
from results.paper.render.sections import Group, Section, sections_of
from tpi.errors import ResourceError, map_errors

TABLES = tuple(name for name in EXHIBITS if name.startswith("table"))
FIGURES = tuple(name for name in EXHIBITS if name.startswith("figure"))


@dataclass(frozen=True, slots=True)
class ShownValue:
    """One value or word.

    Attributes:
        kind: One of `marks.KINDS`, which chooses its colour.
        origin: Where it comes from, shown when it is pointed at.
    """

    text: str
    kind: str
    origin: str


@dataclass(frozen=True, slots=True)
class ShownCell:
    """What stands in one cell: usually one value, and the numbers of its notes."""

    values: tuple[ShownValue, ...]
    notes: str


@dataclass(frozen=True, slots=True)
class ShownLine:
    """The cells of one row from one source."""

    source: str
    cells: tuple[ShownCell, ...]


@dataclass(frozen=True, slots=True)
class ShownGroup:
    """One row of the paper, with a line a source."""

    name: str
    lines: tuple[ShownLine, ...]


@dataclass(frozen=True, slots=True)
class ShownSection:
    """A block of columns; `heading` names its metrics, empty where there is but one block."""

    heading: str
    columns: tuple[str, ...]
    groups: tuple[ShownGroup, ...]


@dataclass(frozen=True, slots=True)
class ShownExhibit:
    """A table or figure.

    Attributes:
        notes: What stands below it.
        image: Of a figure: the drawing as a data URI; empty where there is none.
    """

    name: str
    title: str
    sections: tuple[ShownSection, ...]
    notes: tuple[str, ...]
    image: str = ""


def shown_exhibit(book: ResultSet, name: str, svg: bytes | None = None) -> ShownExhibit:
    """One table or figure with all its values."""
    notes = Footnotes(book)
    sections = tuple(_section(part, notes, name) for part in sections_of(book, name))
    texts = [f"({number}) {text}" for number, text in enumerate(notes.texts, 1)]
    # As an image: no name or style in it meets those of another, and nothing in it runs.
    image = f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}" if svg is not None else ""
    return ShownExhibit(name, title_of(name), sections, (*texts, *below(book, name)), image)


def _section(part: Section, notes: Footnotes, exhibit: str) -> ShownSection:
    columns = tuple(column.title for column in part.columns)
    return ShownSection(
        part.heading, columns, tuple(_group(group, notes, exhibit) for group in part.groups)
    )


def _group(group: Group, notes: Footnotes, exhibit: str) -> ShownGroup:
    lines = (
        ShownLine(line.label, tuple(_cell(cells, notes) for cells in line.cells))
        for line in group.lines
    )
    return ShownGroup(label_of(group.row, exhibit), tuple(lines))


def _cell(cells: Sequence[Cell], notes: Footnotes) -> ShownCell:
    values = dict.fromkeys(_value(notes.book, cell) for cell in cells)
    return ShownCell(tuple(values), notes.numbers(cells))


def _value(book: ResultSet, cell: Cell) -> ShownValue:
    shown = show(cell, stand_in_name(book, cell))
    marks = [mark_dilation(shown.dilation)] if shown.kind == "dilated" else []
    marks += [shown.stand_in] if shown.stand_in else []
    return ShownValue(" ".join([shown.text, *marks]), shown.kind, _origin(cell))


def _origin(cell: Cell) -> str:
    runs = f"n={cell.n}" if cell.n else ""
    scale = cell.scale if ran(cell) else ""
    parts = (cell.evidence, scale, cell.backend, runs, cell.source, cell.run_id)
    return ", ".join(part for part in parts if part)


def draw_all(book: ResultSet, figures_dir: Path | None) -> tuple[Mapping[str, bytes], list[str]]:
    """SVG of every figure, and one line for each that there is none of.

    Args:
        book: What is drawn.
        figures_dir: Where they were rendered; None draws them here.
    """
    images: dict[str, bytes] = {}
    problems = []
    for name in FIGURES:
        try:
            images[name] = _read(figures_dir, name) if figures_dir else _draw(book, name)
        except Exception as exc:  # noqa: BLE001  # one drawing's defect must not hide the rest
            problems.append(f"{name}: {exc}")
    return images, problems


def _read(folder: Path, exhibit: str) -> bytes:
    path = folder / f"{exhibit}.svg"
    with map_errors({OSError: ResourceError}, f"cannot read {path}"):
        return path.read_bytes()


def _draw(book: ResultSet, exhibit: str) -> bytes:
    # Here, since matplotlib takes a second to load.
    from results.paper.render.figures.draw import draw
    from results.paper.render.figures.style import house_style, svg_bytes

    with house_style():
        return svg_bytes(draw(book, exhibit))
