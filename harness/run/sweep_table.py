"""The table, the notes and the CSV of a sweep. Pure."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from results.records.comparison_table import COLUMNS, LEGEND, row_cells, where_lines
from results.records.schema import RunRecord

# These columns stay in the table even if every row has the same value.
_ALWAYS = ("system", "TTFT", "token latency")
_METRICS = (
    *("ttft_s", "token_latency_s", "token_latency_low_s", "token_latency_high_s", "runs"),
    *("peak_memory_bytes", "disk_bytes_per_token", "wire_bytes_per_token", "messages_per_token"),
)


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the outcome: the swept options, and one system under them."""

    swept: tuple[str, ...]
    record: RunRecord


def table_of(names: Sequence[str], lines: Sequence[Line]) -> Table:
    """The table for a terminal: the swept options, then the columns that are not constant."""
    columns = _columns(lines)
    kept = _kept(columns, lines)
    table = Table(box=None, padding=(0, 1), pad_edge=False, collapse_padding=True)
    for name in names:
        table.add_column(name, justify="right")
    for i in kept:
        title, is_number = COLUMNS[i]
        table.add_column(title, justify="right" if is_number else "left", no_wrap=True)
    for number, line in enumerate(lines):
        cells = (*line.swept, *(columns[i][number] for i in kept))
        table.add_row(*map(Text, cells))  # as Text: brackets are no markup
    return table


def notes_of(names: Sequence[str], lines: Sequence[Line]) -> list[str]:
    """Constant columns, legend, testbeds, and each reason or note once."""
    columns = _columns(lines)
    kept = _kept(columns, lines)
    same = [
        f"{COLUMNS[i][0]} {cells[0]}"
        for i, cells in enumerate(columns)
        if i not in kept and len(set(cells)) == 1
    ]
    jobs_of: dict[str, list[str]] = {}
    for line in lines:
        record = line.record
        where = ", ".join(f"{n}={v}" for n, v in zip(names, line.swept, strict=True))
        for text in (*((record.reason,) if record.status != "ok" else ()), *record.notes):
            jobs_of.setdefault(f"{record.system}: {' '.join(text.split())}", []).append(where)
    return [
        *([f"In every row: {', '.join(same)}."] if same else []),
        *LEGEND,
        *where_lines([line.record for line in lines]),
        *(
            f"{note} ({jobs[0]}{f' and {len(jobs) - 1} more' if len(jobs) > 1 else ''})"
            for note, jobs in jobs_of.items()
        ),
    ]


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
    """The values of `_METRICS`; csv writes None as an empty cell."""
    metrics = record.metrics
    if metrics is None:
        return (None,) * len(_METRICS)
    ttft, latency = metrics.ttft_s, metrics.token_latency_s
    spread = (latency.median, latency.low, latency.high) if latency else (None,) * 3
    disk, wire = metrics.disk_bytes_per_token, metrics.wire_bytes_per_token
    peak = peak_memory_bytes(record)
    return (ttft.median, *spread, ttft.n, peak, disk, wire, metrics.messages_per_token)


def _columns(lines: Sequence[Line]) -> list[tuple[str, ...]]:
    return list(zip(*(row_cells(line.record) for line in lines), strict=True))


def _kept(columns: Sequence[tuple[str, ...]], lines: Sequence[Line]) -> list[int]:
    swept = list(zip(*(line.swept for line in lines), strict=True))  # `dev`, if that is swept
    return [
        i
        for i, cells in enumerate(columns)
        if COLUMNS[i][0] in _ALWAYS or (len(set(cells)) > 1 and cells not in swept)
    ]
