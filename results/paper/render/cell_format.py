"""How one cell looks: its value in words, and the kind of evidence that sets it apart.

Every rendering dresses the same `FormattedCell` in its own way (`MARKDOWN` here, LaTeX in
`results/paper/render/latex.py`, fills and hatches in `figures/style.py`), so that measured,
dilated, simulated, computed and reported numbers never look alike. Read `show` first.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from results.paper.cell import METRICS, Cell
from tpi.units import format_bytes, format_seconds

KINDS = ("measured", "dilated", "simulated", "computed", "reported", "absent")
_SUPERSCRIPTS = str.maketrans("0123456789.", "⁰¹²³⁴⁵⁶⁷⁸⁹·")
# Words that say nothing of the system; `oom` is a result like any number.
_NO_RESULTS = ("not run", "unusable", "infeasible")
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
# Of every unit that `in_words` writes; counts have none.
_UNITS = {
    "µs": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "%": 0.01, "Mbit/s": 1e6, "bn": 1e9, "": 1.0,
    "B": 1.0, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30, "TiB": 2.0**40,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class FormattedCell:
    """A cell in words.

    Attributes:
        kind: One of `KINDS`.
        text: The value with its unit and interval, or the word.
        dilation: Where it is not 1, it is marked.
        stand_in: What ran in the place of the paper's model; empty where that one ran.
    """

    kind: str
    text: str
    dilation: float = 1.0
    stand_in: str = ""


def kind_of(cell: Cell) -> str:
    """The kind of evidence that it is drawn as."""
    if cell.word in _NO_RESULTS or cell.evidence == "infeasible":
        return "absent"
    if cell.word == "not found" and cell.evidence != "reported":
        return "absent"
    return "dilated" if cell.evidence == "measured" and cell.dilation != 1 else cell.evidence


def ran(cell: Cell) -> bool:
    """Whether something really ran: all else is of the paper's size."""
    return kind_of(cell) in ("measured", "dilated")


def show(cell: Cell, stand_in: str = "") -> FormattedCell:
    """A cell in words, its kind and what stands in for the paper's model beside them."""
    text = cell.word or (plain(cell.text) if cell.value is None else value_text(cell))
    return FormattedCell(kind_of(cell), text, cell.dilation, stand_in if ran(cell) else "")


def value_text(cell: Cell) -> str:
    """`1.45 s (1.40-1.50)`: the value with its unit, and its interval where it has a width."""
    value = cell.value
    if value is None:
        return ""
    if cell.evidence == "reported":
        return _as_printed(cell, value)
    text = in_words(cell.place.metric, value)
    if cell.low is None or cell.high is None or cell.low == cell.high:
        return text
    return f"{text} ({_bound(cell.low, text)}-{_bound(cell.high, text)})"


def in_words(metric: str, value: float) -> str:
    """A value of a metric with its unit, to three significant digits."""
    return _FORMATS[METRICS[metric]](value)


def mark_dilation(dilation: float) -> str:
    """`ᵈ⁸` of a dilation of 8."""
    return "ᵈ" + f"{dilation:g}".translate(_SUPERSCRIPTS)


MARKDOWN: Mapping[str, Callable[[FormattedCell], str]] = {
    "measured": lambda shown: f"**{shown.text}**",
    "dilated": lambda shown: f"{shown.text} {mark_dilation(shown.dilation)}",
    "simulated": lambda shown: f"*~{shown.text}*",
    "computed": lambda shown: f"= {shown.text}",
    "reported": lambda shown: f"[{shown.text}]",
    "absent": lambda shown: shown.text,
}


def markdown_of(shown: FormattedCell) -> str:
    """A cell as Markdown, the mark of its kind on it."""
    return MARKDOWN[shown.kind](shown) + (f" {shown.stand_in}" if shown.stand_in else "")


def markdown_legend() -> list[str]:
    """What the marks mean, one line each."""
    samples = [FormattedCell(kind, "word" if kind == "absent" else "1 s", 8.0) for kind in KINDS]
    return [*(f"{markdown_of(shown)}: {LEGEND[shown.kind]}" for shown in samples), STAND_IN_LEGEND]


def plain(text: str) -> str:
    """One line without control characters: a log's words must not move the cursor."""
    return "".join(c if c.isprintable() else " " for c in text)


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


def _bound(bound: float, text: str) -> str:
    """One end of an interval in the unit of the median's text, without it."""
    number, _, unit = text.partition(" ")
    digits = max(0, 3 - len(number.partition(".")[0]))
    return f"{bound / _UNITS[unit]:.{digits}f}"


def _count(value: float) -> str:
    if value >= 1e8:
        return f"{value / 1e9:.3g} bn"
    return f"{value:,.0f}" if value == int(value) else f"{value:.3g}"


def _rate(value: float) -> str:
    return f"{value / 1e6:.4g} Mbit/s"


def _share(value: float) -> str:
    return f"{100 * value:.3g} %"


_FORMATS: Mapping[str, Callable[[float], str]] = {
    "s": format_seconds,
    "bytes": format_bytes,
    "share": _share,
    "bit/s": _rate,
    "": _count,
}
