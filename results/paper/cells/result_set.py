"""All cells of one scale, collected from an index and its run records, the paper's values beside.

Nothing is measured or composed here: the same folder always gives the same book. A record that
cannot be used becomes a cell `unusable` that names it; the others are read all the same. Read
`read_book` first.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from results.paper.cell import Cell, Place
from results.paper.index import Entry, Index, read_index
from results.records.measure import measure
from results.records.schema import Metrics, RecordError, RunRecord, Spread
from results.records.stats import spread
from results.records.store import RunStore

_RUN_METRICS = ("ttft_s", "first_token_s", "token_latency_s", "peak_memory_bytes")
_SHARES = {
    "compute_share": "compute",
    "allreduce_share": "allreduce",
    "wait_weights_share": "wait_weights",
}

# What a run without a timing says; any other status is a failure.
_WORDS = {"oom": "oom", "infeasible": "infeasible", "interrupted": "not run"}

# How often is not what was run, and of devices and links two words may come to the same run: cores
# beyond what a device's memory can feed change nothing.
_NOT_COMPARED = ("repeats", "max_minutes", "device.", "link.", "testbed.")


@dataclass(frozen=True, slots=True)
class ResultSet:
    """Cells by place, the records that they come from, and what could not be read.

    Attributes:
        scale: Of what was measured and simulated.
        cells: Of each place: one a kind of evidence and backend.
        records: By run id.
        entries: As the index lists them.
        problems: One line a record or file that cannot be used.
        folder: Where index and records lie.
        sources: By program, the version of its text when runs were last looked at.
    """

    scale: str
    cells: Mapping[Place, tuple[Cell, ...]]
    records: Mapping[str, RunRecord] = field(default_factory=dict)
    entries: tuple[Entry, ...] = ()
    problems: tuple[str, ...] = ()
    folder: Path = Path()
    sources: Mapping[str, str] = field(default_factory=dict)

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


def read_book(folder: Path, others: Iterable[Cell] = ()) -> ResultSet:
    """Read the index of a folder and every record it names.

    Args:
        folder: With `index.json` and the run records.
        others: Cells that come from elsewhere: reported by the paper, or computed.

    Raises:
        RecordError: The index itself cannot be read.
    """
    index = read_index(folder)
    records, problems = _read_records(RunStore(folder), index)
    cells: dict[Place, list[Cell]] = {}
    for cell in (*others, *_run_cells(index, records, problems, RunStore(folder))):
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
        record, problem = records.get(entry.run_id), problems.get(entry.run_id, "")
        problem = problem or problems.get(_key(entry), "")
        if record is not None and not problem:
            yield from cells_of(entry, record, index.scale, _first_tokens(record, store))
            continue
        backend = "sim" if entry.is_simulated else ""
        word, evidence, detail = "not run", "simulated" if backend else "measured", ""
        if problem:
            word, detail = "unusable", problem
        elif entry.failure:
            word, detail = "failed", entry.failure
        elif entry.refusal:
            word, evidence, detail = "infeasible", "infeasible", entry.refusal
        yield from _absent(entry, word, evidence, index.scale, backend, detail=detail)


def mismatch_of(entry: Entry, record: RunRecord) -> str:
    """Why a record cannot be the run of an entry; empty if it can."""
    asked = dict(each.partition("=")[::2] for each in entry.overrides)
    pairs = [(record.system, entry.system), (model_of(record), asked.get("model", ""))]
    pairs += [
        (f"{key}={found}", f"{key}={wanted}")
        for key, wanted in asked.items()
        if not key.startswith(_NOT_COMPARED) and not _agree(found := _setting(record, key), wanted)
    ]
    for found, wanted in pairs:
        if wanted and found and found != wanted:
            return f"index: {_key(entry)}: record {record.run_id} is of {found}, expected {wanted}"
    return ""


def _setting(record: RunRecord, key: str) -> object:
    """What a record was configured with, by a dotted key or an option of its system."""
    found: object = record.config
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    if found is None and key != "systems":
        systems = record.config.get("systems")
        options = systems.get(record.system) if isinstance(systems, Mapping) else None
        found = options.get(key) if isinstance(options, Mapping) else None
    return found


def _agree(found: object, wanted: str) -> bool:
    """Whether they are one number or word, or nothing that can be compared."""
    if isinstance(found, bool) or not isinstance(found, int | float | str):
        return True
    if isinstance(found, str):
        return found == wanted or "/" in wanted
    try:
        return float(wanted) == found
    except ValueError:  # a size in words, or a choice that became a number
        return True


def model_of(record: RunRecord) -> str:
    """The name of the model that ran; empty where the record does not say."""
    model = record.config.get("model")
    return str(model.get("name") or "") if isinstance(model, Mapping) else ""


def _key(entry: Entry) -> str:
    return f"{entry.exhibit} {entry.row} {entry.column} of {entry.program}"


def _first_tokens(record: RunRecord, store: RunStore) -> Spread | None:
    """Loading and request to first token of each repeat together; None where there is none."""
    found = [measure(repeat) for repeat in store.repeats(record) if repeat.status == "ok"]
    return spread([each.load_s + each.ttft_s for each in found]) if found else None


def cells_of(entry: Entry, record: RunRecord, scale: str, first: Spread | None) -> Iterator[Cell]:
    """The cells that one run gives; a run without a timing gives words.

    `first` is loading and request to first token of each repeat together.
    """
    metrics, backend = record.metrics, backend_of(record)
    evidence = "simulated" if backend == "sim" else "measured"
    if metrics is None:
        word = _WORDS.get(record.status, "failed")
        evidence = "infeasible" if word == "infeasible" else evidence
        yield from _absent(
            entry,
            word,
            evidence,
            scale,
            backend,
            record.run_id,
            f"{record.status}: {record.reason}",
        )
        return
    for metric, value in _values(metrics, first).items():
        yield Cell(
            place=Place(entry.exhibit, entry.row, entry.column, metric),
            evidence=evidence,
            value=value.median,
            low=value.low if value.n > 1 else None,
            high=value.high if value.n > 1 else None,
            n=value.n,
            scale=scale,
            backend=backend,
            dilation=dilation_of(record),
            run_id=record.run_id,
            detail="; ".join(record.notes),
        )


def backend_of(record: RunRecord) -> str:
    """The testbed's backend; empty where the record does not say."""
    testbed = record.config.get("testbed")
    return str(testbed.get("backend", "")) if isinstance(testbed, Mapping) else ""


def dilation_of(record: RunRecord) -> float:
    """By what measured times were divided."""
    dilation = record.calibration.get("dilation")
    factor = dilation.get("factor") if isinstance(dilation, Mapping) else None
    return float(factor) if isinstance(factor, int | float) else 1.0


def _values(metrics: Metrics, first: Spread | None) -> dict[str, Spread]:
    n = metrics.ttft_s.n
    values = {"ttft_s": metrics.ttft_s}
    if first is not None:
        values["first_token_s"] = first
    if metrics.token_latency_s is not None:
        values["token_latency_s"] = metrics.token_latency_s
    peaks = [peak for peak in metrics.peak_memory.rss_hwm if peak is not None]
    if peaks:
        values["peak_memory_bytes"] = _exact(float(max(peaks)), n)
    for metric, name in _SHARES.items():
        if name in metrics.time_share:
            values[metric] = _exact(metrics.time_share[name], n)
    return values


def _exact(value: float, n: int) -> Spread:
    return Spread(value, value, value, n)


def _absent(
    entry: Entry,
    word: str,
    evidence: str,
    scale: str,
    backend: str = "",
    run_id: str = "",
    detail: str = "",
) -> Sequence[Cell]:
    return [
        Cell(
            place=Place(entry.exhibit, entry.row, entry.column, metric),
            evidence=evidence,
            word=word,
            scale=scale,
            backend=backend,
            run_id=run_id or entry.run_id,
            detail=detail,
        )
        for metric in _RUN_METRICS
    ]
