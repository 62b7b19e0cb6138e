"""Which module draws which figure.

Every exhibit gives a figure: where there is no value at all, one that names the missing runs.
"""

from collections.abc import Sequence

from matplotlib.figure import Figure

from results.paper.cells.result_set import ResultSet
from results.paper.cells.substitutions import stand_in_names
from results.paper.render.figures.allreduce import draw_allreduce
from results.paper.render.figures.bars import draw_bars
from results.paper.render.figures.shares import draw_shares
from results.paper.render.figures.style import COLUMN, GREY, new_figure
from results.paper.render.figures.timeline import draw_timeline
from results.paper.render.figures.traced import traced_runs
from results.paper.render.figures.window import draw_window
from results.paper.render.layouts import LAYOUTS, label_of
from results.paper.render.window_history import window_history


def draw(results: ResultSet, exhibit: str) -> Figure:
    """Draw one figure; inside `style.house_style`."""
    figure = _figure(results, exhibit)
    if figure is None:
        figure = new_figure(COLUMN, 1.4)
        lines = ["nothing to draw", *_missing(results, exhibit)]
        figure.text(0.5, 0.5, "\n".join(lines), ha="center", va="center", wrap=True)
    names = stand_in_names(results, exhibit)
    ran = f"; {', '.join(names)} in the paper's place: no number of its size" if names else ""
    footer = f"measured at scale {results.scale}{ran}"
    figure.supxlabel(footer, fontsize=5.5, x=0.01, ha="left", color=GREY)
    return figure


def _figure(results: ResultSet, exhibit: str) -> Figure | None:
    """The figure; None where there is nothing to draw."""
    if exhibit in ("figure1a", "figure4"):
        # What was measured first.
        runs = sorted(traced_runs(results, exhibit), key=lambda run: run.kind == "simulated")
        if exhibit == "figure4":
            drawn = (
                draw_window(stays, run.kind, run.words)
                for run in runs
                if (stays := window_history(run.repeat))
            )
            return next(drawn, None)
        rows = LAYOUTS[exhibit].rows
        runs.sort(key=lambda run: [run.row != row for row in rows])
        return draw_timeline(runs) if runs else None
    if all(cell.value is None for cell in results.exhibit(exhibit)):
        return None
    drawing = {"figure1b": draw_shares, "figure3": draw_allreduce}.get(exhibit, draw_bars)
    return drawing(results, exhibit)


def _missing(results: ResultSet, exhibit: str) -> Sequence[str]:
    """One line for each run that would be drawn: what became of it."""
    entries = [entry for entry in results.entries if entry.exhibit == exhibit]
    lines = []
    for entry in entries:
        record = results.records.get(entry.run_id)
        word = "not run" if not entry.run_id else "unusable"
        if record is not None:
            word = "no trace" if record.metrics is not None else record.status
        lines.append(f"{label_of(entry.row, exhibit)}, {label_of(entry.column)}: {word}")
    rows = LAYOUTS[exhibit].rows
    return list(dict.fromkeys(lines)) or [f"{label_of(row, exhibit)}: not run" for row in rows]
