"""How one cell looks: its value in words, and a mark for its kind of evidence.

Every rendering marks the same `FormattedCell` in its own way: Markdown here, LaTeX in `latex.py`,
fills and hatches in `figures/style.py`. Numbers of different kinds never look alike.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from results.paper.cell import KINDS, METRICS, Cell
from results.records.notes import plain
from tpi.units import Quantity, bytes_quantity, seconds_quantity

_SUPERSCRIPTS = str.maketrans("0123456789.", "⁰¹²³⁴⁵⁶⁷⁸⁹·")
LEGEND = {
    "measured": "measured here",
    "dilated": "measured on devices and links slowed k times, times divided by k",
    "simulated": "predicted by the simulator",
    "computed": "computed by a formula or a replay, nothing was run",
    "reported": "reported by the paper",
    "absent": "why there is no number",
}
STAND_IN_LEGEND = (
    "a name after a value (`tiny`, `4 devices`): what ran in the place of the paper's, so it is no"
    " number of the paper's size"
)
_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class FormattedCell:
    """A cell in words."""

    kind: str  # one of `KINDS`
    text: str  # the value with its unit and interval, or why there is none
    dilation: float = 1.0  # marked where it is not 1
    stand_in: str = ""  # what ran instead of the paper's model; empty where that one ran


# One of each kind, for legends.
SAMPLES = tuple(FormattedCell(kind, "word" if kind == "absent" else "1 s", 8.0) for kind in KINDS)


def format_cell(cell: Cell, stand_in: str = "") -> FormattedCell:
    """A cell in words, with its kind and what stands in for the paper's model."""
    text = cell.missing_reason or (plain(cell.text) if cell.value is None else value_text(cell))
    return FormattedCell(cell.kind, text, cell.dilation, stand_in if cell.ran else "")


def value_text(cell: Cell) -> str:
    """`1.45 s (1.40-1.50)`: the value with its unit, and its interval where it has a width."""
    value = cell.value
    if value is None:
        return ""
    if cell.evidence == "reported":
        return _as_printed(cell, value)
    words = _quantity(cell.place.metric, value)
    if cell.low is None or cell.high is None or cell.low == cell.high:
        return str(words)
    return f"{words} ({words.bound(cell.low)}-{words.bound(cell.high)})"


def in_words(metric: str, value: float) -> str:
    """A value of a metric with its unit, to three significant digits."""
    return str(_quantity(metric, value))


def _quantity(metric: str, value: float) -> Quantity:
    return _QUANTITIES[METRICS[metric]](value)


def mark_dilation(dilation: float) -> str:
    """`ᵈ⁸` of a dilation of 8."""
    return "ᵈ" + f"{dilation:g}".translate(_SUPERSCRIPTS)


MARKDOWN: Mapping[str, Callable[[FormattedCell], str]] = {
    "measured": lambda cell: f"**{cell.text}**",
    "dilated": lambda cell: f"{cell.text} {mark_dilation(cell.dilation)}",
    "simulated": lambda cell: f"*~{cell.text}*",
    "computed": lambda cell: f"= {cell.text}",
    "reported": lambda cell: f"[{cell.text}]",
    "absent": lambda cell: cell.text,
}


def markdown_of(cell: FormattedCell) -> str:
    """A cell as Markdown, with the mark of its kind."""
    return MARKDOWN[cell.kind](cell) + (f" {cell.stand_in}" if cell.stand_in else "")


def markdown_legend() -> list[str]:
    """What the marks mean, one line each."""
    return [*(f"{markdown_of(cell)}: {LEGEND[cell.kind]}" for cell in SAMPLES), STAND_IN_LEGEND]


def escaped(text: str) -> str:
    """One line that Markdown takes as text, in a table's cell too."""
    return plain(text).replace("|", "/").replace("<", "&lt;")


def _as_printed(cell: Cell, value: float) -> str:
    """To four digits, since the paper prints 137.7; in seconds and GiB, as it does."""
    unit = METRICS[cell.place.metric]
    if unit == "s" and value >= 1:
        return f"{value:.4g} s"
    if unit == "bytes" and value >= 1 << 29:
        return f"{value / _GIB:.4g} GiB"
    return in_words(cell.place.metric, value)


def _count(value: float) -> Quantity:
    if value >= 1e8:
        return Quantity(f"{value / 1e9:.3g}", "bn", 1e9)
    return Quantity(f"{value:,.0f}" if value == int(value) else f"{value:.3g}", "", 1.0)


_QUANTITIES: Mapping[str, Callable[[float], Quantity]] = {
    "s": seconds_quantity,
    "bytes": bytes_quantity,
    "share": lambda value: Quantity(f"{100 * value:.3g}", "%", 0.01),
    "bit/s": lambda value: Quantity(f"{value / 1e6:.4g}", "Mbit/s", 1e6),
    "": _count,
}
