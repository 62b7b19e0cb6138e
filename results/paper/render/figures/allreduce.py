"""Figure 3: allreduce latency over the latency of one link: measured, our closed form, the paper's.

Panels: 4 bytes; 32 KiB, one float32 hidden state of a 70B model; the same on short links, where the
port that the star's payloads share counts most. Points are measured, full lines are our closed
form, dashed lines the paper's count of hops.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from results.paper.cell import Cell
from results.paper.cells.result_set import ResultSet
from results.paper.render.figures import style
from results.paper.render.layouts import LAYOUTS

PAYLOADS = ("4 bytes", "32 KiB")
_LARGE = PAYLOADS[1]
_POINT: dict[str, Any] = {"marker": "o", "linestyle": ""}
_MARKERS = ("o", "s", "^")  # of the figure's columns
_METRIC = "allreduce_s"


@dataclass(frozen=True, slots=True)
class _Panel:
    """What is drawn, and how far the axes reach."""

    title: str
    payload: str
    link_ms: float
    latency_ms: float


_PANELS = (
    _Panel(PAYLOADS[0], PAYLOADS[0], 10, 250),  # the axes of the paper's figure
    _Panel(PAYLOADS[1], PAYLOADS[1], 10, 250),
    _Panel(f"{PAYLOADS[1]}, short links", PAYLOADS[1], 2, 60),
)


def draw_allreduce(results: ResultSet, exhibit: str) -> Figure:
    """Draw the panels side by side."""
    cells = list(results.exhibit(exhibit))
    figure = style.new_figure(style.WIDE, 2.6)
    grid = figure.subplots(1, len(_PANELS))
    for axes, panel in zip(grid, _PANELS, strict=True):
        _draw(axes, [cell for cell in cells if is_of(cell, panel.payload)])
        axes.set_title(panel.title)
        axes.set_xlim(-0.02 * panel.link_ms, 1.02 * panel.link_ms)
        axes.set_ylim(0, panel.latency_ms)
        axes.set_xlabel("latency of one link (ms)")
    grid[0].set_ylabel(style.axis_title(_METRIC))
    figure.legend(handles=_handles(cells), loc="outside upper center", ncols=4)
    return figure


def is_of(cell: Cell, payload: str) -> bool:
    """Whether a cell belongs to a payload's panel; hops alone belong to both."""
    if is_hops(cell) or cell.missing_reason:
        return True
    return (_LARGE in cell.source) == (payload == _LARGE)


def is_hops(cell: Cell) -> bool:
    """Whether a closed form counts hops alone, as the paper does."""
    return cell.evidence == "computed" and "ours" not in cell.source


def _draw(axes: Axes, cells: Sequence[Cell]) -> None:
    for number, name in enumerate(LAYOUTS["figure3"].columns):
        mine = [cell for cell in cells if cell.place.column == name and cell.value is not None]
        computed = [cell for cell in mine if cell.evidence == "computed"]
        for hops, line in ((True, "--"), (False, "-")):
            points = sorted(_xy(cell) for cell in computed if is_hops(cell) == hops)
            if points:
                xs, ys = zip(*points, strict=True)
                axes.plot(xs, ys, line, color=style.PALETTE[number], linewidth=1.0)
        for cell in mine:
            if cell.evidence != "computed":
                colour = style.PALETTE[number]
                axes.errorbar(
                    *_xy(cell), yerr=style.interval(cell), marker=_MARKERS[number], markersize=4,
                    markerfacecolor=_fill(cell.kind, colour), markeredgecolor=colour,
                    ecolor=colour, elinewidth=0.8, capsize=1.5, linestyle="",
                )  # fmt: skip
    words = {
        cell.missing_reason for cell in cells if cell.evidence == "measured" and cell.missing_reason
    }
    if not any(c.evidence == "measured" and c.value is not None for c in cells):
        text = f"measured: {', '.join(sorted(words)) or 'not run'}"
        axes.text(0.03, 0.95, text, transform=axes.transAxes, va="top", color=style.GREY)


def _fill(kind: str, colour: str) -> Any:
    """As bars are filled: full, pale, empty."""
    return {"measured": colour, "dilated": (colour, 0.45), "simulated": "white"}.get(kind, "none")


def _xy(cell: Cell) -> tuple[float, float]:
    return float(cell.place.row), (cell.value or 0.0) / style.scale_of(_METRIC)[0]


def _handles(cells: Sequence[Cell]) -> list[Line2D]:
    there = {cell.kind for cell in cells if cell.value is not None}
    handles = [
        Line2D([], [], color=style.PALETTE[i], marker=_MARKERS[i], markersize=4, label=name)
        for i, name in enumerate(LAYOUTS["figure3"].columns)
    ]
    factors = sorted({cell.dilation for cell in cells if cell.kind == "dilated"})
    dilated = f"measured, dilation {', '.join(f'{factor:g}' for factor in factors)}"
    points = [("measured", "measured"), ("dilated", dilated), ("simulated", "simulated")]
    lines: list[tuple[str, str, dict[str, Any]]] = [
        *((k, label, {**_POINT, "markerfacecolor": _fill(k, style.GREY)}) for k, label in points),
        ("computed", "computed: ports and delays (ours)", {"linestyle": "-"}),
        ("computed", "computed: hops alone (the paper)", {"linestyle": "--"}),
    ]
    for evidence, label, options in lines:
        if evidence in there:
            handles.append(Line2D([], [], color=style.GREY, markersize=4, label=label, **options))
    return handles
