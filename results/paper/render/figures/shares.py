"""Figure 1b: the shares of each system's time in computation and communication.

One stacked bar for each source. Shares are means over devices, so waiting for another device counts
as communicating; those of a pipeline are of all its devices (`pipeline_shares.py`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from results.paper.cell import Cell
from results.paper.cells.result_set import ResultSet
from results.paper.render.cell_format import in_words
from results.paper.render.figures import style
from results.paper.render.layouts import label_of
from results.paper.render.sections import sections_of

_WIDTH = 0.7


@dataclass(frozen=True, slots=True)
class Stack:
    """One bar: the cells of one system from one source, by what they are a share of."""

    row: str
    label: str
    cells: dict[str, Cell]

    @property
    def known(self) -> dict[str, Cell]:
        """Those with a number."""
        return {name: cell for name, cell in self.cells.items() if cell.value is not None}


def draw_shares(results: ResultSet, exhibit: str) -> Figure:
    """Draw the stacked bars, those of one system side by side."""
    stacks = list(stacks_of(results, exhibit))
    figure = style.new_figure(style.COLUMN, 2.6)
    axes = figure.subplots()
    for x, stack in enumerate(stacks):
        _draw(axes, x, stack)
    axes.set_xlim(-0.6, len(stacks) - 0.4)
    axes.set_ylim(0, 100)
    axes.set_ylabel("share of the time (%)")
    # System and source, each word on its own line: six bars share one column of a page.
    words = [(*label_of(s.row, exhibit).split(), *s.label.split(", ")) for s in stacks]
    axes.set_xticks(range(len(stacks)), ["\n".join(lines) for lines in words])
    axes.tick_params(axis="x", length=0, labelsize=5.5)
    cells = [cell for stack in stacks for cell in stack.cells.values()]
    drawn = {name for stack in stacks for name in stack.known}
    colours = {style.ACTIVITY_LABELS[n]: c for n, c in style.ACTIVITY_COLOURS.items() if n in drawn}
    handles = [*style.colour_patches(colours), *style.evidence_patches(cells)]
    if handles:
        figure.legend(handles=handles, loc="outside upper center", ncols=3)
    return figure


def stacks_of(results: ResultSet, exhibit: str) -> Iterator[Stack]:
    """Every bar: system by system, the paper's first."""
    (section,) = sections_of(results, exhibit)
    names = [column.metric.removesuffix("_share") for column in section.columns]
    for group in section.groups:
        for line in group.lines:
            at = dict(zip(names, line.cells, strict=True))
            for run in dict.fromkeys(cell.run_id for cells in at.values() for cell in cells):
                cells = {name: c for name, found in at.items() for c in found if c.run_id == run}
                yield Stack(group.row, line.label, cells)


def _draw(axes: Axes, x: int, stack: Stack) -> None:
    if not stack.known:
        words: Sequence[str] = list(
            dict.fromkeys(cell.missing_reason for cell in stack.cells.values())
        )
        style.write_word(axes, x, ", ".join(words))
        return
    bottom = 0.0
    for name, colour in style.ACTIVITY_COLOURS.items():
        cell = stack.known.get(name)
        if cell is None or cell.value is None:
            continue
        height = 100 * cell.value
        axes.bar(x, height, _WIDTH, bottom, **style.bar_style(style.evidence_key(cell), colour))
        if height >= 8:
            box = {"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.85}
            words = in_words(cell.place.metric, cell.value)
            axes.text(x, bottom + height / 2, words, ha="center", va="center", bbox=box)
        bottom += height
