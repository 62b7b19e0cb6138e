"""The plot of a sweep: token latency, time to first token and peak memory.

Over a numeric option there is a line per system (and per value of the other swept options); else
groups of bars, one group per job and one bar per system.
"""

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.run.sweep_table import Line, peak_memory_bytes
from results.records.schema import RunRecord

# Units by the end of an option's name; a size is a text with a unit of its own.
_UNITS = {
    "_ms": "ms",
    "_mbps": "Mbit/s",
    "_mb_s": "MB/s",
    "_gbps": "GB/s",
    "_frac": "share",
    "_kib": "KiB",
    "_minutes": "min",
    "_tokens": "tokens",
    "devices": "number",
    "window": "blocks",
}
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([KMG])iB")
_MARKERS = "os^Dvx+*"  # they tell lines apart that cover each other
_LARGE_RANGE = 20  # an axis with a larger range of values is logarithmic
Series = dict[str, list[tuple[float, RunRecord]]]
Metric = Callable[[RunRecord], float | None]


def draw(names: Sequence[str], lines: Sequence[Line], path: Path) -> None:
    """Write the plot of a sweep."""
    x = x_axis(names, lines)
    with mpl.rc_context({"font.size": 8, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(11, 3.6), layout="constrained")
        panels = figure.subplots(1, 3)
        for axes, (label, metric) in zip(panels, _PANELS.items(), strict=True):
            axes.set_ylabel(label)
            if x is None:
                _draw_bars(axes, names, lines, metric)
            else:
                _draw_lines(axes, series_of(names, lines, x), metric)
                axes.set_xlabel(_with_unit(names[x], lines[0].swept[x]))
            _scale(axes)
        handles, texts = panels[0].get_legend_handles_labels()
        figure.legend(handles, texts, loc="outside lower center", ncols=4, frameon=False)
        figure.savefig(path, dpi=150)


def x_axis(names: Sequence[str], lines: Sequence[Line]) -> int | None:
    """The swept option on the x axis: the numeric one with most values, if any."""
    values = {
        i: {line.swept[i] for line in lines}
        for i in range(len(names))
        if all(number_of(line.swept[i]) is not None for line in lines)
    }
    return max(values, key=lambda i: len(values[i]), default=None)


def number_of(text: str) -> float | None:
    """An option's value as a number, sizes in GiB."""
    if match := _SIZE.fullmatch(text):
        return float(match[1]) * {"K": 1 / (1 << 20), "M": 1 / (1 << 10), "G": 1.0}[match[2]]
    try:
        return float(text)
    except ValueError:
        return None


def series_of(names: Sequence[str], lines: Sequence[Line], x: int) -> Series:
    """The points of each line: a system under all swept options but the one on the x axis."""
    series: Series = {}
    for line in lines:
        others = [
            f"{n}={v}" for i, (n, v) in enumerate(zip(names, line.swept, strict=True)) if i != x
        ]
        points = series.setdefault(", ".join([line.record.system, *others]), [])
        points.append((number_of(line.swept[x]) or 0.0, line.record))
    return series


def _draw_lines(axes: Axes, series: Series, metric: Metric) -> None:
    for (label, points), marker in zip(series.items(), itertools.cycle(_MARKERS)):
        known = sorted((x, y) for x, record in points if (y := metric(record)) is not None)
        if known:
            axes.plot(*zip(*known, strict=True), marker=marker, markerfacecolor="none", label=label)
    axes.set_xticks(sorted({x for points in series.values() for x, _ in points}))


def _draw_bars(axes: Axes, names: Sequence[str], lines: Sequence[Line], metric: Metric) -> None:
    groups = list(dict.fromkeys(line.swept for line in lines))
    systems = list(dict.fromkeys(line.record.system for line in lines))
    width = 0.8 / len(systems)
    for number, system in enumerate(systems):
        found = {line.swept: metric(line.record) for line in lines if line.record.system == system}
        places = np.arange(len(groups)) + (number - (len(systems) - 1) / 2) * width
        heights = [found.get(group) or 0.0 for group in groups]
        axes.bar(places, heights, width=width, label=system)
    texts = ["\n".join(group) for group in groups]
    axes.set_xticks(np.arange(len(groups)), texts, rotation=30 if len(groups) > 4 else 0)
    axes.set_xlabel(", ".join(names))


def _scale(axes: Axes) -> None:
    heights = [y for line in axes.lines for y in np.asarray(line.get_ydata(), float) if y > 0]
    heights += [patch.get_height() for patch in axes.patches if patch.get_height() > 0]  # type: ignore[attr-defined]
    if heights and max(heights) > _LARGE_RANGE * min(heights):
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)


def _with_unit(name: str, value: str) -> str:
    unit = "GiB" if _SIZE.fullmatch(value) else ""
    unit = unit or next((u for end, u in _UNITS.items() if name.endswith(end)), "")
    return f"{name} ({unit})" if unit else name


def _latency_s(record: RunRecord) -> float | None:
    latency = record.metrics.token_latency_s if record.metrics else None
    return latency.median if latency else None


def _peak_gib(record: RunRecord) -> float | None:
    peak = peak_memory_bytes(record)
    return None if peak is None else peak / (1 << 30)


_PANELS: Mapping[str, Metric] = {
    "token latency (s)": _latency_s,
    "time to first token (s)": lambda r: r.metrics.ttft_s.median if r.metrics else None,
    "peak memory of a device (GiB)": _peak_gib,
}
