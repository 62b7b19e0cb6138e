"""All cells of one scale, from an index and its run records, beside the paper's values.

Nothing is measured or composed here: the same folder always gives the same result set. A record
that cannot be used becomes a cell `unusable` that names it; the others are still read.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from results.paper.cell import Cell, Place
from results.paper.index import Entry, Index, read_index
from results.records.notes import plain
from results.records.schema import Metrics, RecordError, RunRecord, Spread
from results.records.stats import spread
from results.records.store import RunStore

_RUN_METRICS = ("ttft_s", "first_token_s", "token_latency_s", "peak_memory_bytes")
_SHARES = ("compute", "allreduce", "wait_weights")

# Of a run without a timing; any other status is a failure.
_MISSING_REASONS = {"oom": "oom", "infeasible": "infeasible", "interrupted": "not run"}

# Repeats do not identify a run. Two device or link settings can describe the same run: cores beyond
# what a device's memory can feed change nothing.
_NOT_COMPARED = ("repeats", "max_minutes", "device.", "link.", "testbed.")


@dataclass(frozen=True, slots=True)
class ResultSet:
    """Cells by place, the records that they come from, and what could not be read."""

    scale: str  # of what was measured and simulated
    cells: Mapping[Place, tuple[Cell, ...]]  # for each kind of evidence and backend
    records: Mapping[str, RunRecord] = field(default_factory=dict)  # by run id
    entries: tuple[Entry, ...] = ()  # as the index lists them
    problems: tuple[str, ...] = ()  # one line for each record or file that cannot be used
    folder: Path = Path()  # where index and records are
    sources: Mapping[str, str] = field(default_factory=dict)  # program -> version in the last pass

    def of(self, place: Place, evidence: str | None = None) -> tuple[Cell, ...]:
        """The cells of a place, of one kind of evidence if that is given."""
        cells = self.cells.get(place, ())
        return tuple(c for c in cells if evidence is None or c.evidence == evidence)

    def record_of(self, entry: Entry) -> RunRecord | None:
        """The record of an entry; None if there is none, or it is of something else."""
        record = self.records.get(entry.run_id)
        return None if record is None or mismatch_of(entry, record) else record

    def exhibit(self, name: str) -> Iterator[Cell]:
        """All cells of one table or figure."""
        for place, cells in self.cells.items():
            if place.exhibit == name:
                yield from cells

    def relative(self, text: str) -> str:
        """One line without the path of the folder: the same records give the same text anywhere."""
        return plain(text).replace(f"{self.folder}/", "") if self.folder.name else plain(text)

    def warn(self) -> None:
        """Name on standard error what could not be used: without it the rest may say less."""
        for problem in self.problems:
            sys.stderr.write(f"unusable: {plain(problem)}\n")


def read_result_set(folder: Path, others: Iterable[Cell] = ()) -> ResultSet:
    """Read every record that a folder's index names; `others` are reported or computed cells."""
    index, store = read_index(folder), RunStore(folder)
    records, problems = _read_records(store, index)
    cells: dict[Place, list[Cell]] = {}
    for cell in (*others, *_run_cells(index, records, problems, store)):
        cells.setdefault(cell.place, []).append(cell)
    return ResultSet(
        scale=index.scale,
        cells={place: tuple(found) for place, found in cells.items()},
        records=records,
        entries=index.entries,
        problems=tuple(problems.values()),
        folder=folder,
        sources=index.sources,
    )


def _read_records(store: RunStore, index: Index) -> tuple[dict[str, RunRecord], dict[str, str]]:
    """Records by run id, and problems by run id or by entry."""
    records: dict[str, RunRecord] = {}
    problems: dict[str, str] = {}
    for run_id in dict.fromkeys(entry.run_id for entry in index.entries if entry.run_id):
        try:
            records[run_id] = store.read(run_id)
        except RecordError as exc:
            problems[run_id] = str(exc)
    for entry in index.entries:
        record = records.get(entry.run_id)
        if record is not None and (problem := mismatch_of(entry, record)):
            problems[_key(entry)] = problem
    return records, problems


def _run_cells(
    index: Index, records: Mapping[str, RunRecord], problems: Mapping[str, str], store: RunStore
) -> Iterator[Cell]:
    for entry in index.entries:
        record = records.get(entry.run_id)
        problem = problems.get(entry.run_id, "") or problems.get(_key(entry), "")
        if record is not None and not problem:
            first = [each.load_s + each.ttft_s for each in store.measured(record)]
            yield from cells_of(entry, record, index.scale, spread(first) if first else None)
            continue
        reason, detail = "not run", ""
        if problem:
            reason, detail = "unusable", problem
        elif entry.failure:
            reason, detail = "failed", entry.failure
        elif entry.refusal:
            reason, detail = "infeasible", entry.refusal
        backend = "sim" if entry.is_simulated else ""
        yield from _absent(entry, reason, detail, scale=index.scale, backend=backend)


def mismatch_of(entry: Entry, record: RunRecord) -> str:
    """Why a record cannot be the run of an entry; empty if it can."""
    asked = dict(each.partition("=")[::2] for each in entry.overrides)
    pairs = [(record.system, entry.system), (record.config.model.name, asked.get("model", ""))]
    pairs += [
        (f"{key}={found}", f"{key}={wanted}")
        for key, wanted in asked.items()
        if not key.startswith(_NOT_COMPARED)
        and not _agree(found := record.config.setting(record.system, key), wanted)
    ]
    for found, wanted in pairs:
        if wanted and found and found != wanted:
            return f"index: {_key(entry)}: record {record.run_id} is of {found}, expected {wanted}"
    return ""


def _agree(found: object, wanted: str) -> bool:
    """Whether they are the same number or word, or cannot be compared."""
    if isinstance(found, bool) or not isinstance(found, int | float | str):
        return True
    if isinstance(found, str):
        return found == wanted or "/" in wanted
    try:
        return float(wanted) == found
    except ValueError:  # a size in words, or a choice that became a number
        return True


def _key(entry: Entry) -> str:
    return f"{entry.exhibit} {entry.row} {entry.column} of {entry.program}"


def cells_of(entry: Entry, record: RunRecord, scale: str, first: Spread | None) -> Iterator[Cell]:
    """The cells of a run, or those that say why not; `first` is load and first token together."""
    metrics, backend = record.metrics, record.config.testbed.backend
    if metrics is None:
        reason = _MISSING_REASONS.get(record.status, "failed")
        detail = f"{record.status}: {record.reason}"
        yield from _absent(
            entry, reason, detail, scale=scale, backend=backend, run_id=record.run_id
        )
        return
    for metric, value in _values(metrics, first).items():
        yield Cell(
            place=Place(entry.exhibit, entry.row, entry.column, metric),
            evidence="simulated" if backend == "sim" else "measured",
            value=value.median,
            low=value.low if value.n > 1 else None,
            high=value.high if value.n > 1 else None,
            n=value.n,
            scale=scale,
            backend=backend,
            dilation=record.calibration.dilation.factor,
            run_id=record.run_id,
            detail="; ".join(map(str, record.notes)),
        )


def _values(metrics: Metrics, first: Spread | None) -> dict[str, Spread]:
    def exact(value: float) -> Spread:
        return Spread(value, value, value, metrics.ttft_s.n)

    values = {
        "ttft_s": metrics.ttft_s,
        "first_token_s": first,
        "token_latency_s": metrics.token_latency_s,
    }
    found = {metric: value for metric, value in values.items() if value is not None}
    if peaks := [peak for peak in metrics.peak_memory.rss_hwm if peak is not None]:
        found["peak_memory_bytes"] = exact(float(max(peaks)))
    shares = {name: metrics.time_share[name] for name in _SHARES if name in metrics.time_share}
    return found | {f"{name}_share": exact(value) for name, value in shares.items()}


def _absent(
    entry: Entry, reason: str, detail: str, *, scale: str, backend: str, run_id: str = ""
) -> Iterator[Cell]:
    evidence = "simulated" if backend == "sim" else "measured"
    for metric in _RUN_METRICS:
        yield Cell(
            place=Place(entry.exhibit, entry.row, entry.column, metric),
            evidence="infeasible" if reason == "infeasible" else evidence,
            missing_reason=reason,
            scale=scale,
            backend=backend,
            run_id=run_id or entry.run_id,
            detail=detail,
        )
