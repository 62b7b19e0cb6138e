"""Which module draws which figure, and what stands in a figure that has nothing to draw.

Every exhibit gives a figure: where there is no value at all, one that names the runs that are
missing. Read `draw` first.
"""

from collections.abc import Callable, Mapping, Sequence

from matplotlib.figure import Figure

from results.paper.cells.result_set import ResultSet
from results.paper.cells.substitutions import stand_in_names
from results.paper.render.figures.allreduce import draw_allreduce
from results.paper.render.figures.bars import draw_bars
from results.paper.render.figures.shares import draw_shares
from results.paper.render.figures.style import COLUMN, GREY, new_figure
from results.paper.render.figures.timeline import draw_timeline
from results.paper.render.figures.traced import Traced, traced_runs
from results.paper.render.figures.window import draw_window
from results.paper.render.layouts import LAYOUTS, label_of
from results.paper.render.window_history import window_history


def draw(book: ResultSet, exhibit: str) -> Figure:
    """Draw one figure; inside `style.house_style`."""
    figure = _DRAW[exhibit](book, exhibit)
    figure.supxlabel(_footer(book, exhibit), fontsize=5.5, x=0.01, ha="left", color=GREY)
    return figure


def _footer(book: ResultSet, exhibit: str) -> str:
    names = stand_in_names(book, exhibit)
    ran = f"; {', '.join(names)} in the paper's place: no number of its size" if names else ""
    return f"measured at scale {book.scale}{ran}"


def _timeline(book: ResultSet, exhibit: str) -> Figure:
    rows = LAYOUTS[exhibit].rows
    runs = sorted(_measured_first(book, exhibit), key=lambda run: [run.row != row for row in rows])
    return draw_timeline(runs) if runs else _nothing(book, exhibit)


def _measured_first(book: ResultSet, exhibit: str) -> list[Traced]:
    return sorted(traced_runs(book, exhibit), key=lambda run: run.kind == "simulated")


def _window(book: ResultSet, exhibit: str) -> Figure:
    for run in _measured_first(book, exhibit):
        if steps := window_history(run.repeat):
            return draw_window(steps, run.kind, run.words)
    return _nothing(book, exhibit)


def _unless_empty(
    drawing: Callable[[ResultSet, str], Figure],
) -> Callable[[ResultSet, str], Figure]:
    def one(book: ResultSet, exhibit: str) -> Figure:
        has_value = any(cell.value is not None for cell in book.exhibit(exhibit))
        return drawing(book, exhibit) if has_value else _nothing(book, exhibit)

    return one


def _nothing(book: ResultSet, exhibit: str) -> Figure:
    figure = new_figure(COLUMN, 1.4)
    lines = ["nothing to draw", *_missing(book, exhibit)]
    figure.text(0.5, 0.5, "\n".join(lines), ha="center", va="center", wrap=True)
    return figure


def _missing(book: ResultSet, exhibit: str) -> Sequence[str]:
    """One line a run that would be drawn: what became of it."""
    entries = [entry for entry in book.entries if entry.exhibit == exhibit]
    lines = []
    for entry in entries:
        record = book.records.get(entry.run_id)
        word = "not run" if not entry.run_id else "unusable"
        if record is not None:
            word = "no trace" if record.metrics is not None else record.status
        lines.append(f"{label_of(entry.row, exhibit)}, {label_of(entry.column)}: {word}")
    rows = LAYOUTS[exhibit].rows
    return list(dict.fromkeys(lines)) or [f"{label_of(row, exhibit)}: not run" for row in rows]


_BARS, _SHARES = _unless_empty(draw_bars), _unless_empty(draw_shares)
_DRAW: Mapping[str, Callable[[ResultSet, str], Figure]] = {
    "figure1a": _timeline,
    "figure1b": _SHARES,
    "figure1c": _BARS,
    "figure3": _unless_empty(draw_allreduce),
    "figure4": _window,
    **{f"figure5{part}": _BARS for part in "abc"},
    "figure6": _BARS,
}
