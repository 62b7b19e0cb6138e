"""Figure 1a: what every device does at what time, computing or communicating, system by system.

A panel is one traced run, a row in it one device; loading is the thin strip below. A long run has
more spans than a page can show: the panel then ends early, and says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from results.paper.render.figures import style
from results.paper.render.figures.traced import Traced
from results.paper.render.layouts import label_of
from results.records.spans import RankSpan

MAX_SPANS = 400  # of one device: about as many as seven inches can tell apart
# Top and height in a device's row, whose middle is 0.
_ROW, _BELOW = (-0.4, 0.64), (0.27, 0.13)
_STRIPS = {"compute": _ROW, "allreduce": _ROW, "wait": _ROW, "load": _BELOW}
_ACTIVITIES = {"compute": "compute", "allreduce": "allreduce", "wait": "wait_weights"}
_COLOURS = {name: style.ACTIVITY_COLOURS[activity] for name, activity in _ACTIVITIES.items()}
_COLOURS["load"] = style.PALETTE[2]
_LABELS = {name: style.ACTIVITY_LABELS[activity] for name, activity in _ACTIVITIES.items()}
_LABELS["load"] = "loading weights"


@dataclass(frozen=True, slots=True)
class Cut:
    """The spans that are drawn, and where they end; `is_cut` if there are more."""

    spans: tuple[RankSpan, ...]
    end_s: float
    is_cut: bool


def cut(spans: Sequence[RankSpan]) -> Cut:
    """The first spans of the request, so many that they can be told apart."""
    drawn = sorted((s for s in spans if s.name in _STRIPS), key=lambda span: span.start_s)
    ends = []
    for rank in {span.rank for span in drawn}:
        mine = [span for span in drawn if span.rank == rank]
        ends.append((mine[min(len(mine), MAX_SPANS) - 1].end_s, len(mine) > MAX_SPANS))
    end_s = min((end for end, more in ends if more), default=max((e for e, _ in ends), default=0.0))
    kept = tuple(span for span in drawn if span.start_s < end_s)
    return Cut(kept, end_s, any(more for _, more in ends))


def draw_timeline(runs: Sequence[Traced]) -> Figure:
    """Draw one panel for each run; panels of one kind of evidence end at the same time."""
    cuts = _ending_together(runs, [cut(run.spans) for run in runs])
    ranks = [max((span.rank for span in run.spans), default=0) + 1 for run in runs]
    figure = style.new_figure(style.WIDE, 0.9 + sum(0.65 + 0.16 * count for count in ranks))
    grid = figure.subplots(len(runs), 1, squeeze=False, height_ratios=ranks)
    for axes, run, piece in zip(grid[:, 0], runs, cuts, strict=True):
        _draw(axes, run, piece)
        axes.set_xlim(0, piece.end_s or 1.0)
    grid[-1, 0].set_xlabel("time since the request (s)")
    names = {span.name for piece in cuts for span in piece.spans}
    colours = {_LABELS[name]: _COLOURS[name] for name in _STRIPS if name in names}
    figure.legend(
        handles=style.colour_patches(colours), loc="outside upper center", ncols=len(_STRIPS)
    )
    return figure


def _ending_together(runs: Sequence[Traced], cuts: Sequence[Cut]) -> list[Cut]:
    """Cut again where another run of the same kind is cut, so that the two can be compared."""
    ends: dict[str, float] = {}
    for run, piece in zip(runs, cuts, strict=True):
        if piece.is_cut:
            ends[run.kind] = min(piece.end_s, ends.get(run.kind, piece.end_s))
    for kind in {run.kind for run in runs} - ends.keys():  # nothing is cut: up to the longest
        ends[kind] = max(p.end_s for r, p in zip(runs, cuts, strict=True) if r.kind == kind)
    return [
        Cut(
            tuple(span for span in piece.spans if span.start_s < ends[run.kind]),
            ends[run.kind],
            piece.is_cut or piece.end_s > ends[run.kind],
        )
        for run, piece in zip(runs, cuts, strict=True)
    ]


def _draw(axes: Axes, run: Traced, piece: Cut) -> None:
    for rank in sorted({span.rank for span in piece.spans}):
        for name, (top, height) in _STRIPS.items():
            bars = [
                (span.start_s, min(span.end_s, piece.end_s) - span.start_s)
                for span in piece.spans
                if span.rank == rank and span.name == name
            ]
            if bars:
                look = style.trace_style(run.kind, _COLOURS[name])
                axes.broken_barh(bars, (rank + top, height), **look)
    count = max((span.rank for span in piece.spans), default=0) + 1
    axes.set_yticks(range(count), [f"device {rank}" for rank in range(count)])
    axes.set_ylim(count - 0.5, -0.5)
    title = f"{label_of(run.row, 'figure1a')} ({run.words})"
    axes.set_title(title + (f", its first {piece.end_s:.3g} s" if piece.is_cut else ""), loc="left")
