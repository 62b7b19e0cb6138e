"""How figures look, and how they become the same bytes every time.

Colour says what is compared (a system, a model), the fill says the evidence: filled is measured,
pale with a full edge is measured on dilated devices, hatched is simulated, dotted is computed, an
outline is what the paper reports. Colours are those of Okabe and Ito, which colour-blind readers
can tell apart. No pyplot: no figure outlives its drawing.
"""

import io
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import StrMethodFormatter

from results.paper.cell import Cell
from results.paper.render.layouts import METRIC_LABELS

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
# What a device does at a time, in figures 1a and 1b.
ACTIVITY_COLOURS = {
    "compute": "#0072B2",
    "allreduce": "#E69F00",
    "wait_weights": "#CC79A7",
    "other": "#BBBBBB",
}
ACTIVITY_LABELS = {
    "compute": "computation",
    "allreduce": "communication",
    "wait_weights": "waiting for weights",
    "other": "other",
}
GREY = "#555555"
_HATCHES = {"as published": "....", "ours": "xx"}
PLAIN_NUMBERS = StrMethodFormatter("{x:g}")  # 0.1, 1, 10 and no powers on a logarithmic axis
WIDE, COLUMN = 7.0, 3.5  # inches: across a page, across a column
_RC: dict[Any, Any] = {
    "svg.hashsalt": "tpi",  # names inside the file follow from its content, not from a clock
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    "font.size": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 8,
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 6.5,
    "lines.linewidth": 1.2,
}
_DPI = 200
_WORD_SIZE = 5.5


@contextmanager
def house_style() -> Iterator[None]:
    """Draw inside with the same settings wherever the user's own are."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_RC)
        yield


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches."""
    return Figure(figsize=(width, height), layout="constrained")


def svg_bytes(figure: Figure) -> bytes:
    """The figure as SVG; the same figure gives the same bytes."""
    return _saved(figure, format="svg", metadata={"Date": None, "Creator": None})


def png_bytes(figure: Figure) -> bytes:
    """The figure as PNG; the same figure gives the same bytes."""
    return _saved(figure, format="png", dpi=_DPI, metadata={"Software": None})


def _saved(figure: Figure, **options: Any) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, **options)
    return out.getvalue()


def interval(cell: Cell) -> list[list[float]] | None:
    """How far a cell's interval reaches below and above its value, on the axis; None without."""
    if cell.value is None or cell.low is None or cell.high is None:
        return None
    factor = scale_of(cell.place.metric)[0]
    value = cell.value / factor
    return [[value - cell.low / factor], [cell.high / factor - value]]


def evidence_key(cell: Cell) -> str:
    """What sets a bar apart: its kind, and of computed ones whose computation."""
    kind = cell.kind
    return f"computed: {cell.source}" if kind == "computed" and cell.source else kind


def bar_style(key: str, colour: str) -> dict[str, Any]:
    """Fill, edge and hatch of a bar or a patch of one kind of evidence."""
    kind, _, source = key.partition(": ")
    styles: dict[str, dict[str, Any]] = {
        "measured": {"facecolor": colour},
        "dilated": {"facecolor": (colour, 0.45)},
        "simulated": {"facecolor": "white", "hatch": "//////"},
        "computed": {"facecolor": "white", "hatch": _HATCHES.get(source, "++++")},
        "reported": {"facecolor": "none", "linewidth": 1.2},
    }
    return {"linewidth": 0.7, "edgecolor": colour, **styles[kind]}


def trace_style(kind: str, colour: str) -> dict[str, Any]:
    """The style of a span of time: without an edge, since thousands stand side by side."""
    if kind == "simulated":
        # Coloured below the hatch: an outline alone could not be told from its neighbour's.
        return {"facecolor": (colour, 0.6), "edgecolor": "white", "hatch": "//////", "linewidth": 0}
    return {**bar_style(kind, colour), "linewidth": 0}


def evidence_patches(cells: Iterable[Cell]) -> list[Patch]:
    """Grey samples for a legend: one for each kind of evidence that has a value."""
    keys = dict.fromkeys(evidence_key(cell) for cell in cells if cell.value is not None)
    labels = {"reported": "the paper", "dilated": "measured, dilated (d)"}
    return [Patch(label=labels.get(key, key), **bar_style(key, GREY)) for key in keys]


def colour_patches(labels: Mapping[str, str]) -> list[Patch]:
    """Samples of colours for a legend: label -> colour."""
    return [Patch(label=label, facecolor=colour) for label, colour in labels.items()]


def write_word(axes: Axes, x: float, word: str) -> None:
    """Write why there is no bar in its place; `OOM` as the paper writes it."""
    text = word.upper() if word == "oom" else word
    axes.text(
        x, 0.02, text, transform=axes.get_xaxis_transform(), rotation=90, ha="center",
        va="bottom", fontsize=_WORD_SIZE, color=GREY,
    )  # fmt: skip


def axis_title(metric: str) -> str:
    """An axis' name with its unit: `peak memory (GiB)`."""
    return f"{METRIC_LABELS.get(metric, metric)} ({scale_of(metric)[1]})"


def scale_of(metric: str) -> tuple[float, str]:
    """By what a metric is divided on an axis, and the unit it then has."""
    if metric.endswith("_bytes"):
        return 2.0**30, "GiB"
    if metric.endswith("_share"):
        return 0.01, "%"
    return (1e-3, "ms") if metric == "allreduce_s" else (1.0, "s")
