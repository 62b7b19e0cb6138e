"""The report's tables and figures: the paper's value above ours, each kind in its own colour.

Rows, columns and words are those of `grid.py`, as in every other rendering; figures are drawn by
`figures/` or taken from a folder, and lie in the page as data. Read `tables_section` first.
"""

import base64
from collections.abc import Iterator, Sequence
from pathlib import Path

from results.book import Book
from results.cells import EXHIBITS, Cell
from results.exhibits import label_of, title_of
from results.footnotes import Footnotes, below
from results.grid import Group, Section, sections_of
from results.marks import KINDS, LEGEND, STAND_IN_LEGEND, mark_dilation, ran, show
from results.markup import Html, folded, image, joined, listed, section, table, tag
from results.stand_ins import stand_in_name
from tpi.errors import ResourceError, map_errors

TABLES = tuple(name for name in EXHIBITS if name.startswith("table"))
FIGURES = tuple(name for name in EXHIBITS if name.startswith("figure"))


def legend() -> Html:
    """What the colours mean."""
    samples = (
        joined([tag("span", kind, cls=f"cell {kind}"), f" {LEGEND[kind]}"]) for kind in KINDS
    )
    return joined([listed(samples), tag("p", STAND_IN_LEGEND, cls="dim")])


def tables_section(book: Book) -> Html:
    """The eight tables."""
    return section("tables", "Tables", *(_exhibit(book, name) for name in TABLES))


def figures_section(book: Book, images: dict[str, bytes]) -> Html:
    """The figures, each with its values below.

    Args:
        book: Whose values they are.
        images: SVG by exhibit; one that is missing has its values alone.
    """
    parts = [_figure(book, name, images.get(name)) for name in FIGURES]
    return section("figures", "Figures", *parts)


def draw_all(book: Book, figures_dir: Path | None) -> tuple[dict[str, bytes], list[str]]:
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


def _draw(book: Book, exhibit: str) -> bytes:
    # Here, since matplotlib takes a second to load.
    from results.figures.draw import draw
    from results.figures.style import house_style, svg_bytes

    with house_style():
        return svg_bytes(draw(book, exhibit))


def _figure(book: Book, exhibit: str, svg: bytes | None) -> Html:
    title = title_of(exhibit)
    drawn = tag("p", "not drawn; see Problems", cls="dim")
    if svg is not None:
        # As an image: no name or style in it meets those of another, and nothing in it runs.
        uri = f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"
        drawn = tag("figure", image(uri, title))
    return joined([tag("h3", title, id_=exhibit), drawn, folded("Values", *_body(book, exhibit))])


def _exhibit(book: Book, exhibit: str) -> Html:
    return joined([tag("h3", title_of(exhibit), id_=exhibit), *_body(book, exhibit)])


def _body(book: Book, exhibit: str) -> Iterator[Html]:
    notes = Footnotes(book)
    for part in sections_of(book, exhibit):
        if part.heading:
            yield tag("p", tag("b", part.heading), f" (measured at scale {book.scale})")
        yield _grid(part, notes, exhibit)
    texts = (f"({number}) {text}" for number, text in enumerate(notes.texts, 1))
    lines = [*texts, *below(book, exhibit)]
    if lines:
        yield tag("div", listed(lines), cls="notes")


def _grid(part: Section, notes: Footnotes, exhibit: str) -> Html:
    head = ("", "source", *(column.title for column in part.columns))
    rows = [row for group in part.groups for row in _group(group, notes, exhibit)]
    return table(head, rows)


def _group(group: Group, notes: Footnotes, exhibit: str) -> Iterator[Sequence[object]]:
    for number, line in enumerate(group.lines):
        name = tag("th", label_of(group.row, exhibit), scope="rowgroup", rowspan=len(group.lines))
        cells = [tag("td", _said(found, notes), cls="number") for found in line.cells]
        yield (*((name,) if number == 0 else ()), line.label, *cells)


def _said(cells: Sequence[Cell], notes: Footnotes) -> Html:
    shown = dict.fromkeys(_cell(notes.book, cell) for cell in cells)
    return joined([*shown, tag("span", notes.numbers(cells), cls="dim")])


def _cell(book: Book, cell: Cell) -> Html:
    shown = show(cell, stand_in_name(book, cell))
    marks = [mark_dilation(shown.dilation)] if shown.kind == "dilated" else []
    marks += [shown.stand_in] if shown.stand_in else []
    text = " ".join([shown.text, *marks])
    return tag("span", text, cls=f"cell {shown.kind}", title=_origin(cell))


def _origin(cell: Cell) -> str:
    """Where a value comes from, shown when it is pointed at."""
    runs = f"n={cell.n}" if cell.n else ""
    scale = cell.scale if ran(cell) else ""
    parts = (cell.evidence, scale, cell.backend, runs, cell.source, cell.run_id)
    return ", ".join(part for part in parts if part)
