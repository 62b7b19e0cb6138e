"""A sweep's outcome: one table, one CSV and one plot, from what its jobs left in its folder.

A job may run in another process or on another host, so each writes a part: a small file that names
its overrides and its run records. The swept options are those in which the parts differ.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.run.failure import failure_of
from harness.run.session import Outcome
from results.records.comparison_table import COLUMNS, LEGEND, make_rows, where_lines
from results.records.schema import RecordError, RunRecord, Spread
from results.records.store import RunStore
from tpi.decode import decode_file
from tpi.errors import EXIT_OK
from tpi.files import write_atomic

_PARTS = "parts"
_MAX_PART = 1 << 20
# These columns stay in the table also where every row has the same.
_ALWAYS = ("system", "TTFT", "token latency")
_METRICS = (
    *("ttft_s", "token_latency_s", "token_latency_low_s", "token_latency_high_s", "runs"),
    *("peak_memory_bytes", "disk_bytes_per_token", "wire_bytes_per_token", "messages_per_token"),
)


class Ran(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One system of a job; `run_id` is empty where it left no record."""

    system: str
    run_id: str
    status: str
    reason: str


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one job of a sweep came to."""

    number: int
    overrides: dict[str, str]
    results_dir: str
    systems: tuple[Ran, ...]
    status: int
    error: str


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the outcome: the swept options, and one system under them."""

    swept: tuple[str, ...]
    record: RunRecord


def part_of(number: int, overrides: Sequence[str], results_dir: Path, outcome: Outcome) -> Part:
    """What is kept of a job."""
    pairs = [override.lstrip("+").partition("=") for override in overrides]
    return Part(
        number=number,
        overrides={key: value for key, _, value in pairs},
        results_dir=str(results_dir.absolute()),
        systems=tuple(Ran(r.system, r.run_id, r.status, r.reason) for r in outcome.records),
        status=outcome.status,
        error="" if outcome.error is None else failure_of(outcome.error)[1],
    )


def write_part(sweep_dir: Path, part: Part) -> None:
    """Keep a part until the sweep ends."""
    folder = sweep_dir / _PARTS
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / f"{part.number}.json", msgspec.json.encode(part))


def clear_parts(sweep_dir: Path) -> None:
    """Remove what an earlier sweep into this folder may have left."""
    for path in _paths(sweep_dir):
        path.unlink(missing_ok=True)
    if (sweep_dir / _PARTS).is_dir():
        (sweep_dir / _PARTS).rmdir()


def write_outcome(sweep_dir: Path, console: Console) -> int:
    """Make table, CSV and plot of all parts, and print the table; returns the exit status.

    Raises:
        OSError: The folder cannot be written.
        RecordError: A record has changed meanwhile.
    """
    parts = [decode_file(path, Part, _MAX_PART, RecordError) for path in _paths(sweep_dir)]
    parts.sort(key=lambda part: part.number)
    names = swept_names(parts)
    lines = lines_of(parts, names)
    if lines:
        write_atomic(sweep_dir / "sweep.csv", csv_text(names, lines).encode())
        console.print("", table_of(names, lines), "")
        for note in (*_same_in_all(lines), *_notes(names, lines)):
            console.print(note, markup=False, soft_wrap=True)
        console.print(f"sweep: {sweep_dir}/sweep.csv", markup=False, soft_wrap=True)
        if any(line.record.metrics for line in lines):
            from harness.run.sweep_plot import draw  # matplotlib takes a second

            draw(names, lines, sweep_dir / "sweep.png")
            console.print(f"plot:  {sweep_dir}/sweep.png", markup=False, soft_wrap=True)
    clear_parts(sweep_dir)
    for error in dict.fromkeys(part.error for part in parts if part.error):
        Console(stderr=True, highlight=False).print("run.py:", error, markup=False, soft_wrap=True)
    return max((part.status for part in parts), default=EXIT_OK)


def swept_names(parts: Sequence[Part]) -> tuple[str, ...]:
    """The options in which the parts differ, in the order of the command line."""
    names = dict.fromkeys(name for part in parts for name in part.overrides)
    return tuple(n for n in names if len({part.overrides.get(n) for part in parts}) > 1)


def lines_of(parts: Sequence[Part], names: Sequence[str]) -> list[Line]:
    """One line per job and system, in their order."""
    lines = []
    for part in parts:
        store = RunStore(Path(part.results_dir))
        swept = tuple(part.overrides.get(name, "").strip("'\"") for name in names)
        for ran in part.systems:
            is_kept = ran.run_id and store.folder(ran.run_id).is_dir()
            record = RunRecord("", ran.system, ran.status, ran.reason)
            lines.append(Line(swept, store.read(ran.run_id) if is_kept else record))
    return lines


def table_of(names: Sequence[str], lines: Sequence[Line]) -> Table:
    """The table for a terminal: the swept options, then what is not the same in all rows."""
    kept = _kept_columns(lines)
    table = Table(box=None, padding=(0, 1), pad_edge=False, collapse_padding=True)
    for name in names:
        table.add_column(name, justify="right")
    for i in kept:
        title, is_number = COLUMNS[i]
        table.add_column(title, justify="right" if is_number else "left", no_wrap=True)
    rows = make_rows([line.record for line in lines])
    for line, row in zip(lines, rows, strict=True):
        cells = (*line.swept, *(row.cells[i] for i in kept))
        table.add_row(*(Text(cell) for cell in cells))  # as Text: brackets are no markup
    return table


def csv_text(names: Sequence[str], lines: Sequence[Line]) -> str:
    """A header and one line per job and system; times in seconds, sizes in bytes."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow((*names, "system", "status", *_METRICS, "run_id", "reason"))
    for line in lines:
        record = line.record
        words = (*line.swept, record.system, record.status)
        writer.writerow((*words, *_numbers(record), record.run_id, record.reason))
    return out.getvalue()


def peak_memory_bytes(record: RunRecord) -> int | None:
    """VmHWM of the largest device."""
    peaks = record.metrics.peak_memory.rss_hwm if record.metrics else ()
    return max((peak for peak in peaks if peak is not None), default=None)


def _numbers(record: RunRecord) -> tuple[object, ...]:
    metrics = record.metrics
    if metrics is None:
        return ("",) * len(_METRICS)
    latency: Spread | None = metrics.token_latency_s
    spread = (latency.median, latency.low, latency.high) if latency else ("", "", "")
    disk, wire = metrics.disk_bytes_per_token, metrics.wire_bytes_per_token
    values = (peak_memory_bytes(record), disk, wire, metrics.messages_per_token)
    known = ("" if value is None else value for value in values)
    return (metrics.ttft_s.median, *spread, metrics.ttft_s.n, *known)


def _columns(lines: Sequence[Line]) -> list[tuple[str, ...]]:
    rows = make_rows([line.record for line in lines])
    return list(zip(*(row.cells for row in rows), strict=True))


def _kept_columns(lines: Sequence[Line]) -> list[int]:
    columns = _columns(lines)
    said = list(zip(*(line.swept for line in lines), strict=True))  # `dev`, if that is swept
    return [
        i
        for i, cells in enumerate(columns)
        if COLUMNS[i][0] in _ALWAYS or (len(set(cells)) > 1 and cells not in said)
    ]


def _same_in_all(lines: Sequence[Line]) -> list[str]:
    """What was left out of the table, since every row has the same."""
    kept = _kept_columns(lines)
    same = [
        f"{COLUMNS[i][0]} {cells[0]}"
        for i, cells in enumerate(_columns(lines))
        if i not in kept and len(set(cells)) == 1
    ]
    return [f"In every row: {', '.join(same)}."] if same else []


def _notes(names: Sequence[str], lines: Sequence[Line]) -> list[str]:
    """Legend, testbeds, and once each why rows have no numbers or what else is to be known."""
    notes: dict[str, list[str]] = {}
    for line in lines:
        record = line.record
        where = ", ".join(f"{n}={v}" for n, v in zip(names, line.swept, strict=True))
        for text in (*((record.reason,) if record.status != "ok" else ()), *record.notes):
            notes.setdefault(f"{record.system}: {' '.join(text.split())}", []).append(where)
    said = [
        f"{note} ({jobs[0]}{f' and {len(jobs) - 1} more' if len(jobs) > 1 else ''})"
        for note, jobs in notes.items()
    ]
    return [*LEGEND, *where_lines([line.record for line in lines]), *said]


def _paths(sweep_dir: Path) -> list[Path]:
    return list((sweep_dir / _PARTS).glob("*.json"))
