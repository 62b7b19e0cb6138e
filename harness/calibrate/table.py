"""A calibration beside the one before it, as a table for a terminal. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from rich.table import Table
from rich.text import Text

from testbed.sim.calibration import Calibration
from tpi.units import format_bytes, format_seconds

_NONE = "-"
_TITLES = ("cost", "measured", "before", "change")
# A change that is marked: repeats on a quiet machine stay well below.
_NOTABLE = 0.2


def calibration_table(new: Calibration, old: Calibration | None) -> Table:
    """A row for every cost; `old` is the calibration of the file, or the reference.

    The rates of one dtype stand in one row; their change is that of the first, a decoded token's.
    """
    table = Table(box=None, padding=(0, 1))
    table.pad_edge, table.collapse_padding = False, True
    for title in _TITLES:
        table.add_column(title, justify="left" if title == "cost" else "right", no_wrap=True)
    before = rows_of(old) if old is not None else {}
    for (name, key), figures in rows_of(new).items():
        known = before.get((name, key))
        ratio = figures[0][1] / known[0][1] if known and known[0][1] else None
        is_notable = ratio is not None and abs(ratio - 1) > _NOTABLE
        table.add_row(
            Text(_title(name, key, figures)),
            Text(_words(name, figures)),
            Text(_words(name, _at_rows_of(figures, known)) if known else _NONE),
            Text(_change(ratio), style="bold" if is_notable else ""),
        )
    return table


def rows_of(calibration: Calibration) -> dict[tuple[str, str], tuple[tuple[int, float], ...]]:
    """(cost, dtype) -> (rows, figure) pairs, one pair if rows do not matter."""
    found: dict[tuple[str, str], tuple[tuple[int, float], ...]] = {}
    for name, value in asdict(calibration).items():
        if name in ("host", "cpu_model", "cores", "schema"):
            continue
        for key, figures in value.items() if isinstance(value, Mapping) else [("", value)]:
            is_table = isinstance(figures, Sequence)
            found[name, key] = tuple(figures) if is_table else ((1, figures),)
    return found


def _at_rows_of(
    figures: Sequence[tuple[int, float]], known: Sequence[tuple[int, float]]
) -> list[tuple[int, float | None]]:
    """The known figures that can be compared, row by row."""
    if len(figures) == 1:
        return [*known[:1]]
    return [(rows, dict(known).get(rows)) for rows, _ in figures]


def _title(name: str, key: str, figures: Sequence[tuple[int, float]]) -> str:
    rows = f" at {' '.join(str(rows) for rows, _ in figures)}" if len(figures) > 1 else ""
    return f"{name} {key}{rows}".strip()


def _words(name: str, figures: Sequence[tuple[int, float | None]]) -> str:
    if len(figures) == 1 and figures[0][1] is not None:
        return _figure(name, figures[0][1])
    unit = "GFLOP/s" if name == "attend" else "GB/s"
    rates = [_NONE if rate is None else _short(rate / 1e9) for _, rate in figures]
    return f"{' '.join(rates)} {unit}"


def _short(value: float) -> str:
    """Two digits: several of them stand in one column."""
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def _figure(name: str, value: float) -> str:
    if name.endswith("_bytes"):
        return format_bytes(value)
    if name.endswith("_s"):
        return f"{value * 1e9:.3g} ns" if value < 1e-6 else format_seconds(value)
    return f"{value / 1e9:.3g} {'GFLOP/s' if name == 'attend' else 'GB/s'}"


def _change(ratio: float | None) -> str:
    if ratio is None:
        return _NONE
    return f"x{ratio:.3g}" if ratio >= 10 else f"{ratio - 1:+.0%}"
