"""The paper's own times, predicted from as few of its cells as fix the unknown rates.

`schedule.replay` knows what the authors' implementation does, but the paper does not say how fast
its devices load and compute. Two cells of Table 1 fix two rates for Klonet, four cells of Table 3
fix those of the laptops; every other cell of Tables 1, 3 and 8 is a prediction. The cells were
chosen for the rate that dominates them, not for how well the rest then fits. The command also
prints the error under other choices.
"""

import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.optimize import least_squares

from results.paper.authors_model.schedule import Rates, Setup, Times, replay
from results.paper.cell import Cell, Place
from results.paper.values.paper_values import reported_cells
from tpi.command_line import Parser
from tpi.model_config import load_preset
from tpi.units import format_seconds
from tpi.weights.hf_folder import required_hf_bytes

SOURCE = "as published"
# Klonet, appendix A.7: four links of 1 ms between two devices, 300 Mbit/s.
_KLONET = {"delay_s": 0.004, "rate_bps": 300e6}
# Table 7. Half a device's latency is its way to the router: 5 and 7 ms make a star of 13.5 ms for
# 7B, and section 3.3 measured 14 ms. The slowest port and the slowest pair set the pace.
_LAPTOPS = {"delay_s": 0.006, "rate_bps": 320e6}
# Section 3.3 measured 11 and 17 ms for attention and FFN, 64 and 129 MiB, of 7B on four laptops.
_LAPTOP_COMPUTE_BPS = (64 + 129) * 2**20 / 28e-3
_WINDOW = 2  # section 4.1: the default
_BAND = 0.25

Predict = Callable[[Place, Sequence[float]], float]

# Why predictions miss, for the cells that do: (places, reason).
_REASONS: tuple[tuple[Callable[[Place], bool], str], ...] = (
    (
        lambda p: (p.exhibit, p.row, p.metric) == ("table1", "llama2-13b", "token_latency_s"),
        "the paper's 13B takes 5.8 s to its first token and 2.9 s for the next, with the same"
        " loads: the second is twice the rate that all other rows load at",
    ),
    (
        lambda p: p.exhibit == "table1" and p.row == "llama3.1-8b",
        "more than half of the master's loads are embedding and head, and load faster than layers",
    ),
    (
        lambda p: p.exhibit == "table1" and p.column == "off",
        "a second of start-up, which the first token without the scheduler includes, weighs most in"
        " the smallest model",
    ),
    (
        lambda p: p.metric == "ttft_s",
        "first tokens on laptops take up to 3.4 times a later one, one pass from an empty window"
        " explains 1.1, and the paper does not say what else they include",
    ),
    (
        lambda p: p.row == "llama2-3b",
        "small enough for a laptop's page cache, and printed in whole seconds",
    ),
    (lambda p: p.row == "yi-34b", "the largest model loads slower than the others"),
)


@dataclass(frozen=True, slots=True)
class Fit:
    """Rates that give the chosen cells, and what they predict for all cells, those included."""

    rates: tuple[float, ...]
    chosen: tuple[Place, ...]
    predicted: Mapping[Place, float]


@dataclass(frozen=True, slots=True)
class _Testbed:
    """What is fitted, what predicts, and over which cells."""

    names: tuple[str, ...]
    start: tuple[float, ...]
    predict: Predict
    exhibits: tuple[str, ...]
    chosen: tuple[Place, ...]


def _predict_klonet(place: Place, values: Sequence[float]) -> float:
    window = _WINDOW if place.column == "on" else None
    setup = Setup(load_preset(place.row), 8, window, **_KLONET)
    return _of_metric(replay(setup, Rates(*values)), place.metric)


def _predict_laptops(place: Place, values: Sequence[float]) -> float:
    swap_bps, offload_bps, one_load_bps, load_bps = values
    model = load_preset(place.row)
    if place.column in ("transformers", "accelerate-2024"):
        # Every pass takes all float32 weights through the disk; swapping fills the memory first,
        # which is a pass of its own.
        passes = 2 if place.column == "transformers" and place.metric == "ttft_s" else 1
        rate_bps = swap_bps if place.column == "transformers" else offload_bps
        return passes * required_hf_bytes(model, "float32") / rate_bps
    devices = {"table3": 4, "table8": 3}[place.exhibit] if place.column == "tpi" else 1
    rates = Rates(load_bps if devices > 1 else one_load_bps, _LAPTOP_COMPUTE_BPS)
    setup = Setup(model, devices, _WINDOW, **_LAPTOPS)
    return _of_metric(replay(setup, rates), place.metric)


def _of_metric(times: Times, metric: str) -> float:
    return times.token_latency_s if metric == "token_latency_s" else times.ttft_s


KLONET = _Testbed(
    names=("load_bps", "compute_bps"),
    start=(0.7e9, 30e9),
    predict=_predict_klonet,
    exhibits=("table1",),
    # Each for the rate that dominates it: products, loads.
    chosen=(
        Place("table1", "llama2-13b", "off", "token_latency_s"),
        Place("table1", "llama2-70b", "on", "token_latency_s"),
    ),
)
LAPTOPS = _Testbed(
    names=("swap_bps", "offload_bps", "one_load_bps", "load_bps"),
    start=(0.5e9, 1e9, 1e9, 0.7e9),
    predict=_predict_laptops,
    exhibits=("table3", "table8"),
    # Swapping, offloading, one laptop's loads, the loads of the slowest of several.
    chosen=tuple(
        Place("table3", "llama2-7b", column, "token_latency_s")
        for column in ("transformers", "accelerate-2024", "transformers-window", "tpi")
    ),
)


def fit(testbed: _Testbed, chosen: Sequence[Place], reported: Mapping[Place, float]) -> Fit:
    """Find the rates that give the chosen cells, by least squares of the ratios' logarithms."""

    def residuals(logs: NDArray[np.float64], /) -> list[float]:
        values = [float(value) for value in np.exp(logs)]
        return [float(np.log(testbed.predict(p, values) / reported[p])) for p in chosen]

    found = least_squares(residuals, np.log(testbed.start), xtol=1e-10)
    rates = tuple(float(value) for value in np.exp(found.x))
    predicted = {place: testbed.predict(place, rates) for place in reported}
    return Fit(rates, tuple(chosen), predicted)


def reported_times(testbed: _Testbed) -> dict[Place, float]:
    """The paper's times that can be predicted: those that are numbers."""
    return {
        cell.place: cell.value
        for cell in reported_cells()
        if cell.place.exhibit in testbed.exhibits
        and cell.place.metric.endswith("_s")
        and cell.value is not None
        and cell.place.column != "accelerate"  # the same numbers again, beside today's version
        # Table 8 repeats what Table 3 has of one laptop.
        and (cell.place.exhibit != "table8" or cell.place.column == "tpi")
    }


def published_time_cells() -> tuple[Cell, ...]:
    """The predictions as cells; those that the rates were fitted on say so."""
    cells = []
    for testbed in (KLONET, LAPTOPS):
        reported = reported_times(testbed)
        for place, seconds in fit(testbed, testbed.chosen, reported).predicted.items():
            detail = reason(place, seconds / reported[place] - 1)
            detail = "fitted on this cell" if place in testbed.chosen else detail
            cells.append(Cell(place, "computed", seconds, source=SOURCE, detail=detail))
    return tuple(cells)


def errors(result: Fit, reported: Mapping[Place, float]) -> dict[Place, float]:
    """Predicted over reported, less one, of the cells that were not fitted."""
    return {
        place: result.predicted[place] / value - 1
        for place, value in reported.items()
        if place not in result.chosen
    }


def reason(place: Place, error: float) -> str:
    """Why a prediction is out of the band, as far as is known; empty where it is within."""
    if abs(error) <= _BAND:
        return ""
    return next((text for holds, text in _REASONS if holds(place)), "not known")


def other_choices(testbed: _Testbed, reported: Mapping[Place, float]) -> Iterator[Fit]:
    """The fit with one of the chosen cells exchanged for another of the same column and metric."""
    for index, place in enumerate(testbed.chosen):
        for other in reported:
            kind = (other.exhibit, other.column, other.metric)
            if kind == (place.exhibit, place.column, place.metric) and other not in testbed.chosen:
                chosen = [*testbed.chosen[:index], other, *testbed.chosen[index + 1 :]]
                yield fit(testbed, chosen, reported)


def main(argv: Sequence[str] | None = None) -> int:
    """Print rates, predictions and errors, and the errors under other choices of cells."""
    Parser(
        prog="lab published-times",
        description="Predict the times of the paper's Tables 1, 3 and 8 from few of their cells.",
    ).parse_args(argv)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)
    for testbed in (KLONET, LAPTOPS):
        reported = reported_times(testbed)
        result = fit(testbed, testbed.chosen, reported)
        rates = ", ".join(f"{n} {v:.4g}" for n, v in zip(testbed.names, result.rates, strict=True))
        console.print(f"\n{', '.join(testbed.exhibits)}: {rates}", markup=False)
        console.print(_table(result, reported))
        found = errors(result, reported)
        console.print(_summary("this choice of cells", found))
        for place, error in found.items():
            if why := reason(place, error):
                console.print(f"* {place} {error:+.0%}: {why}", markup=False, soft_wrap=True)
        others = [errors(other, reported) for other in other_choices(testbed, reported)]
        medians = [statistics.median(abs(e) for e in each.values()) for each in others]
        console.print(
            f"{len(medians)} other choices, one cell exchanged: median error"
            f" {min(medians):.0%} to {max(medians):.0%}"
        )
        worst = others[medians.index(max(medians))]
        console.print(_summary("the worst of them", worst))
    return 0


def _table(result: Fit, reported: Mapping[Place, float]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("cell", "paper", "predicted", "error"):
        table.add_column(name, justify="left" if name == "cell" else "right")
    for place, value in reported.items():
        predicted = result.predicted[place]
        error = predicted / value - 1
        note = "fitted" if place in result.chosen else f"{error:+.0%}"
        mark = " *" if abs(error) > _BAND else ""
        table.add_row(str(place), format_seconds(value), format_seconds(predicted), note + mark)
    return table


def _summary(what: str, found: Mapping[Place, float]) -> str:
    sizes = [abs(error) for error in found.values()]
    within = sum(size <= _BAND for size in sizes)
    return (
        f"{what}: {within} of {len(sizes)} predicted cells within {_BAND:.0%}, median"
        f" {statistics.median(sizes):.0%}, worst {max(sizes):.0%}"
    )
