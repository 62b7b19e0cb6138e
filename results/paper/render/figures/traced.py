"""Runs whose records hold single spans: what figures 1a and 4 are drawn from."""

from collections.abc import Iterator
from dataclasses import dataclass

from results.paper.cell import Place
from results.paper.cells.result_set import ResultSet
from results.paper.cells.substitutions import other_model
from results.paper.index import Entry
from results.records.schema import Repeat, RunRecord
from results.records.spans import RankSpan, spans_of
from results.records.store import RunStore


@dataclass(frozen=True, slots=True)
class Traced:
    """One repeat of a run, with its spans."""

    row: str  # of the exhibit that it is drawn for
    kind: str  # how it is drawn: `measured`, `dilated` or `simulated`
    words: str  # for its title: kind and dilation; scale and model of what was measured
    repeat: Repeat
    spans: tuple[RankSpan, ...]


def traced_runs(results: ResultSet, exhibit: str) -> Iterator[Traced]:
    """The runs of an exhibit that kept spans, in the order of the index."""
    found: dict[str, tuple[Entry, RunRecord]] = {}
    for entry in results.entries:
        if entry.exhibit == exhibit and (record := results.record_of(entry)):
            found.setdefault(entry.run_id, (entry, record))
    for entry, record in found.values():
        for repeat in RunStore(results.folder).repeats(record):
            spans = tuple(spans_of(repeat)) if repeat.status == "ok" else ()
            if spans:
                yield Traced(entry.row, *_kind(results, entry, record), repeat, spans)
                break


def _kind(results: ResultSet, entry: Entry, record: RunRecord) -> tuple[str, str]:
    """How a run is drawn, and the words of its title."""
    if record.is_simulated:
        return "simulated", "simulated"
    dilation = record.calibration.dilation.factor
    kind, how = "measured", "measured"
    if dilation != 1:
        kind, how = "dilated", f"measured, dilation {dilation:g}"
    model = other_model(Place(entry.exhibit, entry.row, entry.column, "text"), record)
    words = [how, results.scale, f"{model} in the paper's place" if model else ""]
    return kind, ", ".join(filter(None, words))
