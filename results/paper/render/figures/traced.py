"""Runs whose records hold single spans: what figures 1a and 4 are drawn from.

Read `traced_runs` first.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from results.paper.cell import Place
from results.paper.cells.result_set import ResultSet, backend_of, dilation_of
from results.paper.cells.substitutions import other_model
from results.paper.index import Entry
from results.records.schema import Repeat, RunRecord
from results.records.spans import RankSpan, spans_of
from results.records.store import RunStore


@dataclass(frozen=True, slots=True)
class Traced:
    """One repeat of a run, with its spans.

    Attributes:
        row: Of the exhibit that it is drawn for.
        kind: How it is drawn: `measured`, `dilated` or `simulated`.
        words: For its title: kind and dilation; scale and model of what was measured.
    """

    row: str
    kind: str
    words: str
    repeat: Repeat
    spans: tuple[RankSpan, ...]


def traced_runs(book: ResultSet, exhibit: str) -> Iterator[Traced]:
    """The runs of an exhibit that kept spans, in the order of the index.

    Raises:
        RecordError: A samples file has changed since the book was read.
    """
    store = RunStore(book.folder)
    seen = set()
    for entry in book.entries:
        record = book.record_of(entry)
        if entry.exhibit != exhibit or record is None or entry.run_id in seen:
            continue
        seen.add(entry.run_id)
        for repeat in store.repeats(record):
            spans = tuple(spans_of(repeat)) if repeat.status == "ok" else ()
            if spans:
                kind = _kind(record)
                yield Traced(entry.row, kind, _words(book, entry, record, kind), repeat, spans)
                break


def _kind(record: RunRecord) -> str:
    if backend_of(record) == "sim":
        return "simulated"
    return "dilated" if dilation_of(record) != 1 else "measured"


def _words(book: ResultSet, entry: Entry, record: RunRecord, kind: str) -> str:
    if kind == "simulated":
        return kind
    how = kind if kind != "dilated" else f"measured, dilation {dilation_of(record):g}"
    model = other_model(Place(entry.exhibit, entry.row, entry.column, "text"), record)
    return ", ".join([how, book.scale, *([f"{model} in the paper's place"] if model else [])])
