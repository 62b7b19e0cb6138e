"""Figure 4: which blocks are in memory at what time, from the trace of a real run.

A row is one block, a bar the time from its loading to its release; the line above counts all blocks
in memory. Retained blocks have no bars. The first blocks of the request are drawn.
"""

from collections.abc import Sequence
from math import inf

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from results.paper.render.figures import style
from results.paper.render.window_history import Stay

MAX_STAYS = 24
_HEIGHT = 0.75
_KINDS = ("embed", "attn", "ffn", "head")


def draw_window(found: Sequence[Stay], kind: str, title: str) -> Figure:
    """Draw the first stays as bars and, above them, how many blocks are resident."""
    start_s = found[0].start_s
    retained = [stay for stay in found if stay.start_s == start_s and stay.end_s is None]
    stays = [stay for stay in found if stay not in retained][:MAX_STAYS] or found[:MAX_STAYS]
    end_s = max(stay.start_s if stay.end_s is None else stay.end_s for stay in stays)
    figure = style.new_figure(style.COLUMN, 0.9 + 0.13 * len(stays) + 0.7)
    count, bars = figure.subplots(2, 1, sharex=True, height_ratios=(1, 0.2 * len(stays) + 0.5))
    _draw_count(count, found, end_s)
    _draw_stays(bars, stays, end_s, kind)
    bars.set_xlim(start_s, end_s)
    words = f"; retained blocks: {len(retained)}" if retained else ""
    count.set_title(title + words, loc="left")
    return figure


def _draw_count(axes: Axes, stays: Sequence[Stay], until_s: float) -> None:
    ends = [inf if stay.end_s is None else stay.end_s for stay in stays]
    times = sorted(t_s for t_s in {*ends, *(stay.start_s for stay in stays)} if t_s <= until_s)
    counts = [
        sum(stay.start_s <= t_s < end_s for stay, end_s in zip(stays, ends, strict=True))
        for t_s in times
    ]
    axes.step(times, counts, where="post", color="black", linewidth=0.8)
    axes.set_ylabel("blocks")
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(3, integer=True))


def _draw_stays(axes: Axes, stays: Sequence[Stay], end_s: float, kind: str) -> None:
    for number, stay in enumerate(stays):
        until_s = min(end_s if stay.end_s is None else stay.end_s, end_s)
        look = style.trace_style(kind, _colour(stay.label))
        axes.barh(number, until_s - stay.start_s, _HEIGHT, stay.start_s, **look)
    axes.set_yticks(range(len(stays)), [stay.label for stay in stays], fontsize=5.5)
    axes.set_ylim(len(stays) - 0.4, -0.6)
    axes.set_xlabel("time since the request (s)")


def _colour(label: str) -> str:
    number = next((i for i, kind in enumerate(_KINDS) if label.startswith(kind)), len(_KINDS))
    return style.PALETTE[number % len(style.PALETTE)]
