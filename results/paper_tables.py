"""One of the paper's tables from a book, as Markdown: the paper's value above ours in every row.

Each row of the paper is a group of lines, one a source, so that values stand under one another and
are never mixed. Below stand the legend, numbered notes, the testbeds and what could not be read.
`table_latex.py` and `cells_csv.py` render the same sections. Read `markdown` first.
"""

from collections.abc import Iterator, Sequence

from results.book import Book
from results.exhibits import label_of, title_of
from results.footnotes import Footnotes, below
from results.grid import Line, Section, sections_of
from results.marks import markdown_legend, markdown_of, show

Grid = list[tuple[str, ...]]


def markdown(book: Book, exhibit: str) -> str:
    """A table as Markdown that is aligned when read as plain text."""
    notes = Footnotes(book)
    lines = [f"### {title_of(exhibit)}", ""]
    for section in sections_of(book, exhibit):
        lines += [f"{section.heading} (scale {book.scale})", ""] if section.heading else []
        lines += [*aligned(_grid(section, notes)), ""]
    lines += [*(f"- {line}" for line in markdown_legend()), ""]
    lines += [f"{number}. {_escaped(text)}" for number, text in enumerate(notes.texts, 1)]
    lines += ["", *(f"- {_escaped(line)}" for line in below(book, exhibit))]
    return "\n".join(lines).replace("\n\n\n", "\n\n").rstrip() + "\n"


def aligned(grid: Grid) -> list[str]:
    """A header and rows as a Markdown table, every column as wide as its widest cell."""
    widths = [max(len(line[i]) for line in grid) for i in range(len(grid[0]))]
    head, *rows = ["| " + " | ".join(_padded(line, widths)) + " |" for line in grid]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return [head, rule, *rows]


def _padded(line: Sequence[str], widths: Sequence[int]) -> Iterator[str]:
    return (cell.ljust(width) for cell, width in zip(line, widths, strict=True))


def _grid(section: Section, notes: Footnotes) -> Grid:
    grid = [("", "source", *(_escaped(column.title) for column in section.columns))]
    for group in section.groups:
        for number, line in enumerate(group.lines):
            name = "" if number else label_of(group.row)
            grid.append((_escaped(name), _escaped(line.label), *_texts(line, notes)))
    return grid


def _texts(line: Line, notes: Footnotes) -> Iterator[str]:
    for cells in line.cells:
        shown = " / ".join(dict.fromkeys(_escaped(markdown_of(show(cell))) for cell in cells))
        yield shown + notes.numbers(cells)


def _escaped(text: str) -> str:
    return text.replace("|", "/").replace("<", "&lt;")
