"""Figure 4: which blocks are in memory at what time, from the trace of a real run.

A row is one block, a bar the time from its loading to its release; the line above counts all blocks
in memory. Retained blocks have no bars. The first blocks of the request are drawn.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from results.paper.render.figures import style
from results.paper.render.window_history import Step

MAX_STAYS = 24
_HEIGHT = 0.75
_KINDS = ("embed", "attn", "ffn", "head")


@dataclass(frozen=True, slots=True)
class Stay:
    """One block in memory; `end_s` is None where it stays to the end of the trace."""

    label: str
    start_s: float
    end_s: float | None


def stays_of(steps: Sequence[Step]) -> list[Stay]:
    """From what is resident after each change to the stay of each block, by its start."""
    open_at: dict[str, float] = {}
    stays = []
    for t_s, resident in steps:
        for label in [label for label in open_at if label not in resident]:
            stays.append(Stay(label, open_at.pop(label), t_s))
        for label in resident:
            open_at.setdefault(label, t_s)
    stays += [Stay(label, start_s, None) for label, start_s in open_at.items()]
    return sorted(stays, key=lambda stay: (stay.start_s, stay.label))


def draw_window(steps: Sequence[Step], kind: str, title: str) -> Figure:
    """Draw the first stays as bars and, above them, how many blocks are resident."""
    found = stays_of(steps)
    retained = [stay for stay in found if stay.start_s == steps[0][0] and stay.end_s is None]
    stays = [stay for stay in found if stay not in retained][:MAX_STAYS] or found[:MAX_STAYS]
    start_s = steps[0][0]
    known = [stay.end_s for stay in stays if stay.end_s is not None]
    end_s = max([*known, stays[-1].start_s])
    figure = style.new_figure(style.COLUMN, 0.9 + 0.13 * len(stays) + 0.7)
    count, bars = figure.subplots(2, 1, sharex=True, height_ratios=(1, 0.2 * len(stays) + 0.5))
    _draw_count(count, steps, end_s)
    _draw_stays(bars, stays, end_s, kind)
    bars.set_xlim(start_s, end_s)
    words = f"; retained blocks: {len(retained)}" if retained else ""
    count.set_title(title + words, loc="left")
    return figure


def _draw_count(axes: Axes, steps: Sequence[Step], end_s: float) -> None:
    shown = [step for step in steps if step[0] <= end_s]
    axes.step(
        [t_s for t_s, _ in shown], [len(resident) for _, resident in shown], where="post",
        color="black", linewidth=0.8,
    )  # fmt: skip
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
