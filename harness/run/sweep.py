"""A sweep's outcome: one table, one CSV and one plot, from the files of its jobs.

A job may run in another process or on another host, so each writes a part: a small file that names
its overrides and its run records. The swept options are those in which the parts differ.
"""

from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.console import Console

from harness.run.failure import failure_of
from harness.run.session import Outcome
from harness.run.sweep_table import Line, csv_text, notes_of, table_of
from results.records.schema import RecordError, RunRecord
from results.records.store import RunStore
from tpi.decode import decode_file
from tpi.errors import EXIT_OK
from tpi.files import write_atomic

_PARTS = "parts"
_MAX_PART = 1 << 20


class Ran(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One system of a job; `run_id` is empty where it left no record."""

    system: str
    run_id: str
    status: str
    reason: str


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The outcome of one job of a sweep."""

    number: int
    overrides: dict[str, str]
    results_dir: str
    systems: tuple[Ran, ...]
    status: int
    error: str


def write_part(
    sweep_dir: Path, number: int, overrides: Sequence[str], results_dir: Path, outcome: Outcome
) -> None:
    """Keep the outcome of a job until the sweep ends."""
    pairs = [override.lstrip("+").partition("=") for override in overrides]
    part = Part(
        number=number,
        overrides={key: value for key, _, value in pairs},
        results_dir=str(results_dir.absolute()),
        systems=tuple(Ran(r.system, r.run_id, r.status, r.reason) for r in outcome.records),
        status=outcome.status,
        error="" if outcome.error is None else failure_of(outcome.error)[1],
    )
    folder = sweep_dir / _PARTS
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / f"{number}.json", msgspec.json.encode(part))


def clear_parts(sweep_dir: Path) -> None:
    """Remove the parts of an earlier sweep into this folder."""
    for path in (sweep_dir / _PARTS).glob("*.json"):
        path.unlink(missing_ok=True)
    if (sweep_dir / _PARTS).is_dir():
        (sweep_dir / _PARTS).rmdir()


def write_outcome(sweep_dir: Path, console: Console) -> int:
    """Make table, CSV and plot of all parts, and print the table; returns the exit status.

    Raises:
        OSError: The folder cannot be written.
        RecordError: A record has changed meanwhile.
    """
    paths = (sweep_dir / _PARTS).glob("*.json")
    parts = [decode_file(path, Part, _MAX_PART, RecordError) for path in paths]
    parts.sort(key=lambda part: part.number)
    names = swept_names(parts)
    lines = _lines(parts, names)
    if lines:
        write_atomic(sweep_dir / "sweep.csv", csv_text(names, lines).encode())
        console.print("", table_of(names, lines), "")
        for note in (*notes_of(names, lines), f"sweep: {sweep_dir}/sweep.csv"):
            console.print(note, markup=False, soft_wrap=True)
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


def _lines(parts: Sequence[Part], names: Sequence[str]) -> list[Line]:
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
