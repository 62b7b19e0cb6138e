"""Figures made of grouped bars: 1c (memory over devices), 5 (latency over ...), 6 (four systems).

A bar is one cell; within a group those of one series stand together, the paper's first. Where there
is no number, the reason stands upright in place of the bar.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from results.paper.cell import Cell
from results.paper.cells.result_set import ResultSet
from results.paper.render.figures import style
from results.paper.render.layouts import FIRST, LOADS_FIRST, label_of
from results.paper.render.sections import Section, sections_of

_GROUP_WIDTH = 0.86  # of the distance between two groups
_SERIES_GAP = 0.6  # of a bar's width
_LOG_RATIO = 30  # values further apart than this need a logarithmic axis to be seen
_X_TITLES = {
    "figure1c": "devices",
    "figure5a": "devices",
    "figure5b": "CPU cores per device",
    "figure5c": "link bandwidth (Mbit/s)",
}


@dataclass(frozen=True, slots=True)
class Bar:
    """One cell at its place on the x axis, in bar widths from the middle of its group."""

    group: int
    offset: float
    series: int
    cell: Cell


@dataclass(frozen=True, slots=True)
class Panel:
    """One set of axes."""

    metric: str
    groups: tuple[str, ...]
    series: tuple[str, ...]
    bars: tuple[Bar, ...]


def draw_bars(results: ResultSet, exhibit: str) -> Figure:
    """Draw an exhibit of bars, one panel for each metric."""
    panels = panels_of(results, exhibit)
    wide = max(len(panel.bars) for panel in panels) > 16
    figure = style.new_figure(style.WIDE if wide else style.COLUMN, 2.3 * len(panels) + 0.3)
    grid = figure.subplots(len(panels), 1, squeeze=False)
    for axes, panel in zip(grid[:, 0], panels, strict=True):
        _draw(axes, panel)
        axes.set_xlabel(_X_TITLES.get(exhibit, ""))
    cells = [bar.cell for panel in panels for bar in panel.bars]
    series = panels[0].series
    handles = style.evidence_patches(cells)
    if len(series) > 1:
        handles += style.colour_patches(
            {label_of(s): style.PALETTE[i] for i, s in enumerate(series)}
        )
    figure.legend(handles=handles, loc="outside upper center", ncols=5 if wide else 2)
    return figure


def panels_of(results: ResultSet, exhibit: str) -> list[Panel]:
    """The panels of an exhibit; figure 6 groups by system and has the models as series."""
    (section,) = sections_of(results, exhibit)
    metrics: dict[str, list[int]] = {}
    for index, column in enumerate(section.columns):
        # Both of what a time to first token may be are drawn in one panel.
        metric = FIRST[0] if column.metric == FIRST[1] else column.metric
        metrics.setdefault(metric, []).append(index)
    return [_panel(section, metric, at, exhibit) for metric, at in metrics.items()]


def _panel(section: Section, metric: str, columns: Sequence[int], exhibit: str) -> Panel:
    rows = tuple(group.row for group in section.groups)
    # A system's name, told apart where it stands twice.
    names = tuple(
        f"{c.name}/with loading" if c.metric == FIRST[1] and c.name in LOADS_FIRST else c.name
        for c in (section.columns[i] for i in columns)
    )
    by_column = exhibit == "figure6"
    groups, series = (names, rows) if by_column else (rows, names)
    bars: list[Bar] = []
    for number in range(len(groups)):
        pairs = [(s, number) if by_column else (number, s) for s in range(len(series))]
        bars += _placed(number, [_cells(section, row, columns[at]) for row, at in pairs])
    return Panel(metric, groups, series, tuple(bars))


def _cells(section: Section, row: int, column: int) -> list[Cell]:
    cells = [cell for line in section.groups[row].lines for cell in line.cells[column]]
    # A missing formula is for the table alone; a missing run or value is drawn.
    return [cell for cell in cells if cell.evidence != "computed" or cell.value is not None]


def _placed(group: int, found: Sequence[Sequence[Cell]]) -> Iterator[Bar]:
    width = sum(map(len, found)) + _SERIES_GAP * (len(found) - 1)
    offset = 0.5 - width / 2
    for series, cells in enumerate(found):
        for cell in cells:
            yield Bar(group, offset, series, cell)
            offset += 1
        offset += _SERIES_GAP


def _draw(axes: Axes, panel: Panel) -> None:
    reach = max(abs(bar.offset) for bar in panel.bars) + 0.5
    unit = _GROUP_WIDTH / (2 * max(reach, 1.5))
    factor = style.scale_of(panel.metric)[0]
    values = [bar.cell.value / factor for bar in panel.bars if bar.cell.value]
    if values and max(values) > _LOG_RATIO * min(values):
        axes.set_yscale("log")
        axes.set_ylim(min(values) / 3, max(values) * 2)
        axes.yaxis.set_major_formatter(style.PLAIN_NUMBERS)
    for bar in panel.bars:
        _draw_bar(axes, bar, unit, factor)
    axes.set_xlim(-0.5, len(panel.groups) - 0.5)
    axes.set_xticks(
        range(len(panel.groups)), [label_of(name).replace(", ", "\n") for name in panel.groups]
    )
    axes.tick_params(axis="x", length=0)
    axes.set_ylabel(style.axis_title(panel.metric))
    if not values:
        axes.set_yticks([])


def _draw_bar(axes: Axes, bar: Bar, unit: float, factor: float) -> None:
    cell, x = bar.cell, bar.group + bar.offset * unit
    if cell.value is None:
        style.write_word(axes, x, cell.missing_reason)
        return
    value = cell.value / factor
    look = style.bar_style(style.evidence_key(cell), style.PALETTE[bar.series % len(style.PALETTE)])
    axes.bar(x, value, 0.86 * unit, **look)
    if cell.low is not None and cell.high is not None and cell.low < cell.high:
        ends = style.interval(cell)
        axes.errorbar(x, value, yerr=ends, color="black", linewidth=0.7, capsize=1.5)
    if cell.dilation != 1:
        axes.annotate(
            f"d{cell.dilation:g}", (x, value), (0, 2), textcoords="offset points", ha="center",
            fontsize=5.5,
        )  # fmt: skip
