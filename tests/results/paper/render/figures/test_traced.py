from dataclasses import replace
from typing import Any

import pytest

from results.paper.index import Entry
from results.paper.render.figures.draw import draw
from results.paper.render.figures.style import house_style
from results.paper.render.figures.traced import traced_runs
from results.records.schema import RunRecord
from results.records.store import RunStore
from tests.results.books import book
from tests.results.examples import make_repeat, make_traced, spans

ROWS = [
    ["load", 0, 20, "attn.0"], ["wait", 0, 20, "attn.0"], ["compute", 20, 30, "attn.0"],
    ["load", 30, 50, "ffn.0"], ["allreduce", 30, 50, ""], ["compute", 50, 70, "ffn.0"],
]  # fmt: skip
SIM: dict[str, Any] = {"testbed": {"backend": "sim"}}


@pytest.fixture
def traced(tmp_path):
    """A simulated and a measured run, both traced, and one that was not."""
    repeat = make_traced(spans(0, ROWS), spans(1, ROWS))
    store, records, entries = RunStore(tmp_path), {}, []
    runs: Any = (("sim", SIM, repeat), ("local", {}, repeat), ("plain", {}, make_repeat()))
    for number, (column, config, made) in enumerate(runs):
        record = RunRecord(f"tpi-{number:016x}", "tpi", "ok", config=config)
        records[record.run_id] = store.append(record, made)
        entries += [
            Entry("figure1a", "tpi", column, "tpi", (), record.run_id),
            Entry("figure4", "window", column, "tpi", (), record.run_id),
        ]
    return book(records=records, entries=tuple(entries), folder=tmp_path)


def test_runs_with_spans_are_found_in_their_records(traced):
    runs = list(traced_runs(traced, "figure1a"))
    assert [(run.kind, run.words) for run in runs] == [
        ("simulated", "simulated"),
        ("measured", "measured, small"),
    ]
    assert {span.label for span in runs[1].spans} == {"attn.0", "ffn.0", ""}


def test_a_model_in_the_papers_place_is_named(traced):
    tiny: dict[str, Any] = {"model": {"name": "tiny"}}
    records = {
        name: replace(record, config={**record.config, **tiny})
        for name, record in traced.records.items()
    }
    words = [run.words for run in traced_runs(replace(traced, records=records), "figure1a")]
    assert words == ["simulated", "measured, small, tiny in the paper's place"]


def test_timeline_draws_both_and_the_measured_one_first(traced):
    with house_style():
        figure = draw(traced, "figure1a")
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "tensor parallel (measured, small)",
        "tensor parallel (simulated)",
    ]


def test_window_is_drawn_from_the_real_run(traced):
    with house_style():
        count, below = draw(traced, "figure4").axes
    assert count.get_title(loc="left") == "measured, small"
    assert [t.get_text() for t in below.get_yticklabels()] == ["attn.0", "ffn.0"]


def test_run_without_a_trace_is_said_where_no_other_is(traced):
    only = tuple(e for e in traced.entries if e.column == "plain")
    with house_style():
        figure = draw(replace(traced, entries=only), "figure4")
    assert "window, plain: no trace" in "\n".join(t.get_text() for t in figure.texts)
