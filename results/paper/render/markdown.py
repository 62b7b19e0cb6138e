"""One of the paper's tables as Markdown: the paper's value above ours in every row.

Below the table: the legend, numbered notes, the testbeds and what could not be read.
"""

from collections.abc import Iterator, Sequence

from results.paper.cells.result_set import ResultSet
from results.paper.cells.substitutions import stand_in_names
from results.paper.render.cell_format import escaped, markdown_legend, markdown_of
from results.paper.render.footnotes import Footnotes, below
from results.paper.render.layouts import LAYOUTS, label_of, title_of
from results.paper.render.sections import Section, sections_of
from results.records.comparison_table import aligned


def markdown(results: ResultSet, exhibit: str) -> str:
    """A table as Markdown that is aligned when read as plain text."""
    return _joined([f"### {title_of(exhibit)}", "", *_body(results, exhibit)])


def figure_markdown(results: ResultSet, exhibit: str) -> str:
    """A figure's caption, and the values that it draws, as Markdown."""
    image = f"![{title_of(exhibit)}]({exhibit}.svg)"
    caption = f"{LAYOUTS[exhibit].caption} {_dilations(results, exhibit)}"
    return _joined(
        [f"### {title_of(exhibit)}", "", image, "", caption, "", *_body(results, exhibit)]
    )


def _body(results: ResultSet, exhibit: str) -> Iterator[str]:
    """Values, legend, numbered notes, and what is known of the runs."""
    notes = Footnotes.of(results, exhibit)
    for section in sections_of(results, exhibit):
        yield from (
            (f"{section.heading} (measured at scale {results.scale})", "")
            if section.heading
            else ()
        )
        grid = _grid(section, notes, exhibit)
        yield from (*aligned(grid), "")
    if LAYOUTS[exhibit].has_table:
        yield from (*(f"- {line}" for line in markdown_legend()), "")
    yield from (f"{number}. {escaped(text)}" for number, text in enumerate(notes.texts, 1))
    yield ""
    yield from (f"- {escaped(line)}" for line in (*notes.shared_lines(), *below(results, exhibit)))


def _joined(lines: Sequence[str]) -> str:
    return "\n".join(lines).replace("\n\n\n", "\n\n").rstrip() + "\n"


def _dilations(results: ResultSet, exhibit: str) -> str:
    """Scale and dilation of what is drawn, for a caption."""
    factors = sorted({cell.dilation for cell in results.exhibit(exhibit) if cell.dilation != 1})
    words = [f"Measured at scale {results.scale}"]
    words += [f"{name} in the paper's place" for name in stand_in_names(results, exhibit)]
    words += [f"dilation {factor:g}: times are divided by {factor:g}" for factor in factors]
    return "; ".join(words) + "."


def _grid(section: Section, notes: Footnotes, exhibit: str) -> list[tuple[str, ...]]:
    grid = [("", "source", *(escaped(column.title) for column in section.columns))]
    for group in section.groups:
        for number, line in enumerate(group.lines):
            name = "" if number else label_of(group.row, exhibit)
            texts = (
                notes.joined(each, lambda cell: escaped(markdown_of(cell))) + notes.numbers(each)
                for each in line.cells
            )
            grid.append((escaped(name), escaped(line.label), *texts))
    return grid
