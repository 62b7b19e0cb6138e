"""The report's runs: of which source version, where they ran, and how to run each again."""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from results.paper.cells.result_set import ResultSet, mismatch_of
from results.paper.index import Entry
from results.paper.render.layouts import label_of, title_of
from results.paper.report.record_facts import Facts, environment_facts
from results.records.comparison_table import where_lines
from results.records.schema import RunRecord
from tpi.units import counted


@dataclass(frozen=True, slots=True)
class SourceVersion:
    """One version of a program's text, and the runs of it."""

    program: str
    version: str
    is_present: bool
    run_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Sources:
    """Whether all records are of the same program text.

    A run's name holds a hash of the text that its numbers come from, and the driver notes the
    version in the index. Where one table was run again after a change, records of older text stay
    behind the others, and are named here.

    Attributes:
        most: The most versions that any program has.
        mixed: Those of programs that have several.
        num_unknown: Cells whose version the index does not say.
    """

    most: int
    mixed: tuple[SourceVersion, ...]
    num_unknown: int


@dataclass(frozen=True, slots=True)
class Environment:
    """A host with its versions, and the runs that were made there."""

    facts: Facts
    testbeds: tuple[str, ...]
    run_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Rerun:
    """The command that runs one cell again, and what became of it so far."""

    row: str
    column: str
    state: str
    run_id: str
    command: str


@dataclass(frozen=True, slots=True)
class Reruns:
    """All cells of one exhibit, and the command for what is missing of it."""

    title: str
    command: str
    cells: tuple[Rerun, ...]


def sources_of(book: ResultSet) -> Sources:
    """The versions among the records; the present one is there where older ones are."""
    versions: dict[str, dict[str, dict[str, None]]] = {}
    for entry in book.entries:
        if entry.run_id and entry.source:
            runs = versions.setdefault(entry.program, {}).setdefault(entry.source, {})
            runs[entry.run_id] = None
    for program, found in versions.items():
        if program in book.sources:
            found.setdefault(book.sources[program], {})
    return Sources(
        max((len(found) for found in versions.values()), default=1),
        tuple(
            SourceVersion(program, version, version == book.sources.get(program), tuple(runs))
            for program, found in versions.items()
            if len(found) > 1
            for version, runs in found.items()
        ),
        sum(1 for entry in book.entries if entry.run_id and not entry.source),
    )


def environments(book: ResultSet) -> list[Environment]:
    """The hosts and versions behind the records, each once, with its runs."""
    found: dict[Facts, list[RunRecord]] = {}
    for record in book.records.values():
        found.setdefault(environment_facts(record), []).append(record)
    return [
        Environment(facts, tuple(where_lines(records)), tuple(each.run_id for each in records))
        for facts, records in found.items()
    ]


def reruns(book: ResultSet) -> Iterator[Reruns]:
    """The command of every run, by exhibit."""
    for exhibit in dict.fromkeys(entry.exhibit for entry in book.entries):
        entries = [entry for entry in book.entries if entry.exhibit == exhibit]
        command = f"make {exhibit.rstrip('abc')} SCALE={book.scale}"
        yield Reruns(title_of(exhibit), command, _reruns(book, entries))


def _reruns(book: ResultSet, entries: Sequence[Entry]) -> tuple[Rerun, ...]:
    return tuple(
        Rerun(
            label_of(entry.row),
            label_of(entry.column),
            _state(book, entry),
            entry.run_id,
            command_of(entry, book.folder),
        )
        for entry in entries
    )


def command_of(entry: Entry, folder: Path) -> str:
    """What runs one cell alone, as a shell takes it, with its record beside the others."""
    more = [f"systems=[{entry.system}]", f"results_dir={folder}"]
    return shlex.join(["python", "run.py", *entry.overrides, *more])


def _state(book: ResultSet, entry: Entry) -> str:
    record = book.records.get(entry.run_id)
    if record is not None and mismatch_of(entry, record):
        return "unusable"
    if record is not None:
        repeats = f", {counted(record.num_ok, 'repeat')}" if record.samples else ""
        return f"{record.status}{repeats}"
    if entry.failure:
        return f"failed: {entry.failure}"
    if entry.refusal:
        return f"refused: {entry.refusal}"
    return "unusable" if entry.run_id else "not run"
