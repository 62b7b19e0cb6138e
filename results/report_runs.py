"""The report's sections on runs: what could not be used, where they ran, how to run each again.

Read `rerun_section` first.
"""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from results.book import Book, mismatch_of
from results.environment import HostFacts
from results.exhibits import label_of, title_of
from results.index import Entry
from results.markup import Html, counted, folded, joined, listed, section, table, tag
from results.schema import RunRecord
from results.tables import where_lines

_FACTS = (
    *("cpu_model", "cores", "usable_cores", "memory_gib", "swap_bytes", "architecture", "kernel"),
    *("cgroup", "governor", "python"),
)


def problems_section(problems: Sequence[str]) -> Html:
    """Every record and figure that could not be used, one line each."""
    if not problems:
        return section("problems", "Problems", tag("p", "None: every record could be read."))
    lines = (tag("p", problem, cls="problem") for problem in problems)
    return section("problems", "Problems", *lines)


def environment_section(book: Book) -> Html:
    """The hosts and versions behind the records, each once, with its runs."""
    found: dict[str, list[RunRecord]] = {}
    for record in book.records.values():
        facts = json.dumps(_facts(record), sort_keys=True, default=str)
        found.setdefault(facts, []).append(record)
    parts = [_environment(records) for records in found.values()]
    none = tag("p", "No run record says where it ran.")
    return section("environment", "Environment", *(parts or [none]))


def _facts(record: RunRecord) -> dict[str, object]:
    environment = record.environment
    facts: dict[str, object] = {} if environment.host is None else _of_host(environment.host)
    if environment.calibrated_host is not None:
        facts["calibrated_host"] = environment.calibrated_host.words
    return facts


def _of_host(host: HostFacts) -> dict[str, object]:
    found = {name: getattr(host, name) for name in _FACTS}
    facts = {name: value for name, value in found.items() if value is not None}
    facts |= {
        f"version of {name}": version or "not installed" for name, version in host.versions.items()
    }
    if disk := host.weights_disk:
        facts |= {"disk: device": disk.device, "disk: file_system": disk.file_system}
    return facts


def _environment(records: Sequence[RunRecord]) -> Html:
    facts = _facts(records[0])
    runs = (tag("code", record.run_id) for record in records)
    return joined(
        [
            table(("fact", "value"), facts.items()) if facts else tag("p", "No facts were kept."),
            listed(where_lines(records)),
            folded(counted(len(records), "run"), listed(runs)),
        ]
    )


def rerun_section(book: Book) -> Html:
    """The command of every run, by exhibit."""
    exhibits = dict.fromkeys(entry.exhibit for entry in book.entries)
    parts = [_reruns(book, exhibit) for exhibit in exhibits]
    none = tag("p", "The index lists no run.")
    return section("rerun", "How to run each cell again", *(parts or [none]))


def _reruns(book: Book, exhibit: str) -> Html:
    entries = [entry for entry in book.entries if entry.exhibit == exhibit]
    rows = [
        (
            label_of(entry.row),
            label_of(entry.column),
            _state(book, entry),
            tag("code", entry.run_id),
            tag("code", command_of(entry, book.folder)),
        )
        for entry in entries
    ]
    head = ("row", "column", "state", "record", "command")
    all_of_it = f"make {exhibit.rstrip('abc')} SCALE={book.scale}"
    again = "; with what is unusable or failed: "
    return joined(
        [
            tag("h3", title_of(exhibit)),
            tag(
                "p",
                "All that is missing of it: ",
                tag("code", all_of_it),
                again,
                tag("code", f"{all_of_it} RETRY=1"),
            ),
            table(head, rows),
        ]
    )


def command_of(entry: Entry, folder: Path) -> str:
    """What runs one cell alone, as a shell takes it, with its record beside the others."""
    more = [f"systems=[{entry.system}]", f"results_dir={folder}"]
    return shlex.join(["python", "run.py", *entry.overrides, *more])


def _state(book: Book, entry: Entry) -> str:
    record = book.records.get(entry.run_id)
    if record is not None and mismatch_of(entry, record):
        return "unusable"
    if record is not None:
        return (
            f"{record.status}, {counted(record.num_ok, 'repeat')}"
            if record.samples
            else record.status
        )
    if entry.failure:
        return f"failed: {entry.failure}"
    if entry.refusal:
        return f"refused: {entry.refusal}"
    return "unusable" if entry.run_id else "not run"
