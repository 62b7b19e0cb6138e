"""Memory as published held against the paper's Tables 2 and 6: error of every cell, and why.

`compare` gives the cells, `miss_reason` says of one that is more than 10 % off what in the paper's
own numbers explains it; the words come from comparing numbers, not from a list. Read
`published_memory.py` first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from rich.console import Console
from rich.table import Table

from results.cells import Cell
from results.published_memory import (
    FITTED_ON,
    Setting,
    block_bytes,
    memory_cells,
    process_bytes,
    published_peak_bytes,
    setting_of,
)
from tpi.command_line import Parser
from tpi.config import load_preset
from tpi.errors import EXIT_OK

PREDICTED = ("table2", "table6")
LIMIT = 0.10
_GIB = 2**30


@dataclass(frozen=True, slots=True)
class Comparison:
    """One cell of the paper beside what is predicted for it, in bytes."""

    cell: Cell
    setting: Setting
    paper: float
    predicted: float

    @property
    def error(self) -> float:
        """Relative to the paper."""
        return self.predicted / self.paper - 1

    @property
    def is_close(self) -> bool:
        """Whether it is within 10 %."""
        return abs(self.error) <= LIMIT


def compare(exhibit: str) -> tuple[Comparison, ...]:
    """Predict every memory cell of one table."""
    found = []
    for cell in memory_cells(exhibit):
        setting = setting_of(cell)
        found.append(
            Comparison(cell, setting, float(cell.value or 0), published_peak_bytes(setting))
        )
    return tuple(found)


def share_close(compared: Sequence[Comparison]) -> float:
    """The share of cells within 10 %."""
    return sum(each.is_close for each in compared) / len(compared)


def miss_reason(miss: Comparison, papers: Mapping[Setting, float]) -> str:
    """Say what in the paper's own numbers stands against the prediction.

    Args:
        miss: A cell that is more than 10 % off.
        papers: What the paper reports of each setting.
    """
    setting = miss.setting
    shorter = papers.get(replace(setting, window=2)) if setting.window else None
    if miss.error > 0 and shorter is not None and miss.paper < shorter:
        return (
            f"the paper's value is below its own of window 2, {shorter / _GIB:.1f} GiB, whose "
            "blocks a longer window holds as well"
        )
    excess = miss.paper - miss.predicted
    last = block_bytes(load_preset(setting.model), setting.devices, 0)[1:3]
    if miss.error < 0 and excess <= sum(last):
        return (
            f"{excess / _GIB:.2f} GiB above what the published code holds; a guess: blocks freed "
            f"later than it says (an attention and an FFN block are {sum(last) / _GIB:.2f})"
        )
    return "not explained"


def misses() -> tuple[tuple[Comparison, str], ...]:
    """All predicted cells that are more than 10 % off, with their reasons."""
    compared = [each for exhibit in PREDICTED for each in compare(exhibit)]
    papers = {each.setting: each.paper for each in compared}
    return tuple((each, miss_reason(each, papers)) for each in compared if not each.is_close)


def summary() -> tuple[str, ...]:
    """The constant and the shares within 10 %, a line each."""
    lines = [
        f"one constant, fitted on the memory of {FITTED_ON}: {process_bytes() / _GIB:.3f} GiB "
        "of process beside the weights"
    ]
    everything = [each for exhibit in PREDICTED for each in compare(exhibit)]
    fitted = {each.setting for each in compare(FITTED_ON)}
    new = [each for each in everything if each.setting not in fitted]
    groups = {
        "tables 2 and 6": everything,
        **{name: compare(name) for name in PREDICTED},
        "scheduler on": [each for each in everything if each.setting.window],
        "settings that Table 1 does not have": new,
        # Table 6 repeats Table 2 where the scheduler is off.
        "the same, each setting once": list({each.setting: each for each in new}.values()),
    }
    for name, group in groups.items():
        close = sum(each.is_close for each in group)
        lines.append(f"{name}: {close} of {len(group)} cells within 10 %, {share_close(group):.1%}")
    return tuple(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Print every cell, the constant, the shares and the misses; returns the exit status."""
    Parser(
        prog="lab published-memory",
        description="Hold the published code's memory against the paper's Tables 1, 2 and 6.",
    ).parse_args(argv)
    console = Console()
    for exhibit in (FITTED_ON, *PREDICTED):
        fitted = " (fitted on)" if exhibit == FITTED_ON else ""
        table = Table(title=f"{exhibit}{fitted}: peak memory per device as published, GiB")
        for name in ("model", "column"):
            table.add_column(name)
        for name in ("paper", "predicted", "error"):
            table.add_column(name, justify="right")
        for each in compare(exhibit):
            mark = "" if each.is_close else " *"
            table.add_row(
                each.setting.model,
                each.cell.place.column,
                f"{each.paper / _GIB:.1f}",
                f"{each.predicted / _GIB:.2f}",
                f"{each.error:+.1%}{mark}",
            )
        console.print(table)
    for line in summary():
        console.print(line, soft_wrap=True, highlight=False)
    for miss, reason in misses():
        place = miss.cell.place
        console.print(
            f"* {place.exhibit} {place.row} {place.column} {miss.error:+.1%}: {reason}",
            soft_wrap=True,
            highlight=False,
        )
    return EXIT_OK
