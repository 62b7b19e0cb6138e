"""The report's runs: of which source version, where they ran, and how to run each again."""

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from results.paper.cells.result_set import ResultSet, mismatch_of
from results.paper.index import Entry
from results.paper.render.layouts import title_of
from results.records.comparison_table import where_lines
from results.records.schema import RunRecord
from testbed.host.environment import HostFacts
from tpi.units import counted

Facts = tuple[tuple[str, str], ...]  # names and values, in the order in which they are shown

_SHOWN = (
    *("cpu_model", "cores", "usable_cores", "memory_gib", "swap_bytes", "architecture", "kernel"),
    *("cgroup", "governor", "python"),
)


class SourceVersion(NamedTuple):
    """One version of a program's text, and the runs of it."""

    program: str
    version: str
    is_present: bool
    run_ids: tuple[str, ...]


class Sources(NamedTuple):
    """Whether all records are of the same program text; the index names the version of each."""

    most: int  # the most versions that any program has
    mixed: tuple[SourceVersion, ...]  # those of programs that have several
    num_unknown: int  # cells whose version the index does not say


class Environment(NamedTuple):
    """A host with its versions, and the runs that were made there."""

    facts: Facts
    testbeds: list[str]
    run_ids: list[str]


class Rerun(NamedTuple):
    """The command that runs one cell again, and what became of it so far."""

    entry: Entry
    state: str
    command: str


class Reruns(NamedTuple):
    """All cells of one exhibit, and the command for what is missing of it."""

    title: str
    command: str
    cells: list[Rerun]


def sources_of(results: ResultSet) -> Sources:
    """The versions among the records; the present one is listed where older ones are."""
    versions: dict[str, dict[str, dict[str, None]]] = {}
    for entry in results.entries:
        if entry.run_id and entry.source:
            runs = versions.setdefault(entry.program, {}).setdefault(entry.source, {})
            runs[entry.run_id] = None
    for program, found in versions.items():
        if program in results.sources:
            found.setdefault(results.sources[program], {})
    mixed = (
        SourceVersion(program, version, version == results.sources.get(program), tuple(runs))
        for program, found in versions.items()
        if len(found) > 1
        for version, runs in found.items()
    )
    return Sources(
        max(map(len, versions.values()), default=1),
        tuple(mixed),
        sum(1 for entry in results.entries if entry.run_id and not entry.source),
    )


def environment_facts(record: RunRecord) -> Facts:
    """The host and the versions that a record was made with."""
    environment = record.environment
    facts = [] if environment.host is None else list(_of_host(environment.host))
    if environment.calibrated_host is not None:
        facts.append(("calibrated_host", environment.calibrated_host.words))
    return tuple(facts)


def _of_host(host: HostFacts) -> Iterator[tuple[str, str]]:
    for name in _SHOWN:
        if (value := getattr(host, name)) is not None:
            yield name, str(value)
    for name, version in host.versions.items():
        yield f"version of {name}", version or "not installed"
    if host.weights_disk is not None:
        yield "disk: device", str(host.weights_disk.device)
        yield "disk: file_system", str(host.weights_disk.file_system)


def environments(results: ResultSet) -> list[Environment]:
    """The hosts and versions behind the records, each once, with its runs."""
    found: dict[Facts, list[RunRecord]] = {}
    for record in results.records.values():
        found.setdefault(environment_facts(record), []).append(record)
    return [
        Environment(facts, where_lines(records), [each.run_id for each in records])
        for facts, records in found.items()
    ]


def reruns(results: ResultSet) -> Iterator[Reruns]:
    """The command of every run, by exhibit."""
    for exhibit in dict.fromkeys(entry.exhibit for entry in results.entries):
        cells = [
            Rerun(entry, _state(results, entry), command_of(entry, results.folder))
            for entry in results.entries
            if entry.exhibit == exhibit
        ]
        command = f"make {exhibit.rstrip('abc')} SCALE={results.scale}"
        yield Reruns(title_of(exhibit), command, cells)


def command_of(entry: Entry, folder: Path) -> str:
    """What runs one cell alone, quoted for a shell, with its record beside the others."""
    more = [f"systems=[{entry.system}]", f"results_dir={folder}"]
    return shlex.join(["python", "run.py", *entry.overrides, *more])


def _state(results: ResultSet, entry: Entry) -> str:
    record = results.records.get(entry.run_id)
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
