"""The table of a comparison, from run records alone: one row per system, notes below.

The same records always give the same table. A row without a timing says why in a note.
"""

from collections.abc import Iterable, Mapping, Sequence

from rich.table import Table
from rich.text import Text

from results.records.notes import plain
from results.records.schema import Check, Metrics, RunRecord, Spread
from results.records.testbed_facts import SimulatorFacts
from results.records.testbed_words import device_words, link_words
from tpi.units import format_bytes, seconds_quantity

_NONE = "-"
# Title, and whether numbers stand in it (then it is aligned to the right).
COLUMNS = (
    ("system", False),
    ("status", False),
    ("dev", True),
    ("TTFT", True),
    ("token latency", True),
    ("runs", True),
    ("peak mem", True),
    ("disk/tok", True),
    ("wire/tok", True),
    ("tokens", False),
)
LEGEND = (
    "Dev: devices that the system used. TTFT: request to first token, without loading. Token",
    "latency: median over runs of the mean time between tokens (95 % interval). Peak mem: VmHWM of",
    "the largest device. Disk, wire: bytes per token of all devices together.",
)
# How a share of the time is called in a note.
_SHARES = {
    "compute": "computing",
    "allreduce": "communicating",
    "wait_weights": "waiting for weights",
    "other": "other",
}


def rich_table(records: Sequence[RunRecord], title: str = "") -> Table:
    """The table for a terminal; it fits 120 columns."""
    table = Table(title=title or None, title_justify="left", box=None, padding=(0, 1))
    table.pad_edge, table.collapse_padding = False, True
    for name, is_number in COLUMNS:
        table.add_column(name, justify="right" if is_number else "left", no_wrap=True)
    for record in records:
        # As Text: a name or reason is never read as markup.
        table.add_row(*map(Text, row_cells(record)))
    table.caption = Text("\n".join(note_lines(records)), style="")
    table.caption_justify = "left"
    return table


def markdown(records: Sequence[RunRecord]) -> str:
    """The same table as Markdown that is aligned when read as plain text."""
    names, are_numbers = zip(*COLUMNS, strict=True)
    lines = aligned([names, *map(row_cells, records)], are_numbers)
    notes = [f"- {line}" for line in (*where_lines(records), *_all_notes(records))]
    return "\n".join([*lines, "", " ".join(LEGEND), "", *notes]).rstrip()


def aligned(grid: Sequence[Sequence[str]], are_numbers: Sequence[bool] = ()) -> list[str]:
    """A header and rows as a Markdown table, every column as wide as its widest cell."""
    are_numbers = are_numbers or [False] * len(grid[0])
    columns = [
        [cell.rjust(width) if is_number else cell.ljust(width) for cell in column]
        for column, is_number in zip(zip(*grid, strict=True), are_numbers, strict=True)
        for width in [max(map(len, column))]
    ]
    rule = "|".join(
        "-" * (len(column[0]) + 1) + (":" if is_number else "-")
        for column, is_number in zip(columns, are_numbers, strict=True)
    )
    cells = [[cell.replace("|", "/") for cell in line] for line in zip(*columns, strict=True)]
    head, *rows = [f"| {' | '.join(line)} |" for line in cells]
    return [head, f"|{rule}|", *rows]


def note_lines(records: Sequence[RunRecord]) -> list[str]:
    """Legend, testbed and notes as they stand below the table."""
    return [*LEGEND, *where_lines(records), *_all_notes(records)]


def where_lines(records: Sequence[RunRecord]) -> list[str]:
    """Where the records were measured, and what that testbed does not limit, each once."""
    lines = [
        line for record in records if record.config.testbed.backend for line in _testbed(record)
    ]
    return list(dict.fromkeys(plain(line) for line in lines))


def _testbed(record: RunRecord) -> list[str]:
    config, calibration = record.config, record.calibration
    factor, limits, links = calibration.dilation.factor, calibration.limits, calibration.links
    text = f"testbed {config.testbed.name} (backend {config.testbed.backend})"
    if record.is_simulated:
        simulator = calibration.simulator or SimulatorFacts("unknown")
        text += f": every number is simulated, from the calibration {simulator.name}"
        text += f" ({simulator.host})"
    if link := config.link.name:
        text += "; " if record.is_simulated else ", "
        names = ", ".join(config.testbed.profile_names(len(limits))) or config.device.name
        text += f"devices {names}"
        text += _in_brackets(device_words(limits, factor))
        text += f", link {link}{_in_brackets(link_words(links, factor) if links else '')}"
    if factor != 1:
        text += f", dilation {factor:g}: every time is what was measured divided by {factor:g}"
    return [text, *record.environment.testbed_notes]


def _in_brackets(text: str) -> str:
    return f" ({text})" if text else ""


def format_spread(spread: Spread | None) -> str:
    """`123 ms (119-131)`: the median with its interval in the same unit."""
    if spread is None:
        return _NONE
    median = seconds_quantity(spread.median)
    if spread.n == 1 and spread.low == spread.high:
        return str(median)
    return f"{median} ({median.bound(spread.low)}-{median.bound(spread.high)})"


def format_check(check: Check) -> str:
    """Whether the tokens are right, in two words."""
    if check.passed is None:
        return "not checked"
    if check.kind == "two_layer_bounded":
        return "in bound, 2 layers" if check.passed else "out of bound"
    if check.kind == "bounded":
        share = "" if check.agreement is None else f" {check.agreement:.0%}"
        return f"in bound{share}" if check.passed else "out of bound"
    if check.passed:
        return "equal, 2 layers" if check.kind == "two_layer" else "equal"
    return "differ" if check.first_difference is None else f"differ at {check.first_difference}"


def format_time_share(time_share: Mapping[str, float]) -> str:
    """`computing 81 %, communicating 12 %, other 7 %`: shares that round to at least 1 %."""
    shares = [(_SHARES[name], round(100 * value)) for name, value in time_share.items()]
    return ", ".join(f"{words} {percent} %" for words, percent in shares if percent)


def row_cells(record: RunRecord) -> tuple[str, ...]:
    """One system's cells, in the order of the columns."""
    devices = len(record.config.predicted_peak_bytes)
    values = (_NONE,) * (len(COLUMNS) - 4)
    if record.metrics is not None:
        values = _values(record.metrics, has_interval=not record.is_simulated)
    check = "not computed" if record.is_simulated else format_check(record.check)
    return (plain(record.system), record.status, str(devices or _NONE), *values, check)


def _values(metrics: Metrics, *, has_interval: bool) -> tuple[str, ...]:
    latency = format_spread(metrics.token_latency_s)
    return (
        format_spread(metrics.ttft_s).split(" (")[0],
        # Nothing varies from one simulation to the next, so an interval would mean nothing.
        latency if has_interval else latency.split(" (")[0],
        str(metrics.ttft_s.n),
        _bytes(max((v for v in metrics.peak_memory.rss_hwm if v is not None), default=None)),
        _bytes(metrics.disk_bytes_per_token),
        _bytes(metrics.wire_bytes_per_token),
    )


def _bytes(value: float | None) -> str:
    return _NONE if value is None else format_bytes(value)


def row_notes(record: RunRecord) -> list[str]:
    """What is to be known of one system's cells."""
    notes = [record.reason] if record.status != "ok" else []
    notes += map(str, record.notes)
    if shares := record.config.shares:
        parts = ", ".join(f"{share / sum(shares):.0%}" for share in shares)
        notes.append(f"shares of the devices {parts}")
    if record.check.passed is not True and record.check.detail and not record.is_simulated:
        notes.append(record.check.detail)
    if record.metrics is not None and (share := format_time_share(record.metrics.time_share)):
        notes.append(f"time: {share}")
    return [f"{plain(record.system)}: {plain(note)}" for note in notes]


def _all_notes(records: Iterable[RunRecord]) -> list[str]:
    return list(dict.fromkeys(note for record in records for note in row_notes(record)))
