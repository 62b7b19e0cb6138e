"""Progress as something that rich can print: a row per system, and a line of the whole run. Pure.

A terminal of 80 columns has room for every column; a wider one shows each device's memory.
"""

from collections.abc import Sequence

from rich.console import Group, JustifyMethod, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from harness.progress.progress import RunProgress, SystemProgress
from tpi.units import format_bytes, format_seconds

_WIDE = 108  # columns
_MANY = 8  # devices whose memory is only summed up
_UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_NARROW = 80  # columns; from this width on, the table's columns keep their places
# Heading, smallest width, alignment.
_COLUMNS: tuple[tuple[str, int, JustifyMethod], ...] = (
    ("system", 8, "left"), ("state", 15, "left"), ("repeat", 6, "left"), ("TTFT", 7, "right"),
    ("token", 7, "right"), ("time", 5, "right"), ("memory", 11, "left"),
)  # fmt: skip


def run_view(run: RunProgress, width: int, also: RenderableType | None = None) -> RenderableType:
    """The table of a run, below it `also`, and then how far the whole is."""
    done, total = run.done
    left_s = run.left_s
    text = f"{format_clock(run.elapsed_s)} elapsed, repeats: {done} of {total}"
    left = "" if left_s is None else f"about {format_clock(left_s)} left"
    whole = bar_line(text, done / max(total, 1), left, width)
    return Group(_table(list(run.rows.values()), width), *([] if also is None else [also]), whole)


def bar_line(title: str, share: float | None, text: str, width: int) -> RenderableType:
    """One line: a title, a bar if it is known how far it is, and a text."""
    grid = Table.grid(padding=(0, 1, 0, 0))
    bar = ProgressBar(total=1.0, completed=share or 0.0, width=24 if width >= _WIDE else 12)
    grid.add_row(_cut(title), *([] if share is None else [bar]), _cut(text))
    return grid


def format_clock(seconds: float) -> str:
    """Write a time as m:ss or h:mm:ss."""
    minutes, whole_s = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{whole_s:02}" if hours else f"{minutes}:{whole_s:02}"


def format_memory(peaks: Sequence[int | None], *, is_wide: bool = False) -> str:
    """Each device's memory in one unit, or the largest and how many there are; empty if unknown."""
    known = [peak for peak in peaks if peak]
    if not known:
        return ""
    largest = format_bytes(max(known))
    if len(peaks) == 1:
        return largest
    unit = largest.split()[1]
    if not is_wide or len(peaks) >= _MANY or unit not in _UNITS:
        return f"{len(peaks)}x ≤{largest}"
    values = [peak / _UNITS[unit] if peak else None for peak in peaks]
    words = ["?" if v is None else f"{v:.0f}" if v >= 100 else f"{v:.3g}" for v in values]
    return f"{' '.join(words)} {unit}"


def _table(rows: Sequence[SystemProgress], width: int) -> Table:
    is_wide = width >= _WIDE
    table = Table(box=None, padding=(0, 2 if is_wide else 1, 0, 0), pad_edge=False)
    for heading, least, justify in _COLUMNS:
        table.add_column(
            heading, header_style="dim", no_wrap=True, overflow="ellipsis", justify=justify,
            min_width=least if width >= _NARROW else None,
        )  # fmt: skip
    for row in rows:
        memory = row.running.memory if row.running is not None else row.memory
        table.add_row(
            Text(row.name),
            Text(row.state, _style(row)),
            f"{row.number} of {row.repeats}",
            _seconds(row.ttft_s),
            _seconds(row.latency_s),
            "" if row.time_s is None else format_clock(row.time_s),
            format_memory(memory, is_wide=is_wide),
        )
    return table


def _style(row: SystemProgress) -> str:
    if row.failed:
        return "red"
    if row.running is not None or row.is_checking:
        return "bold"
    return "dim" if row.todo else "green"


def _seconds(seconds: float | None) -> str:
    return "" if seconds is None else format_seconds(seconds)


def _cut(text: str) -> Text:
    return Text(text, no_wrap=True, overflow="ellipsis")
