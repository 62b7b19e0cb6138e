import pytest

from results.paper.cell import EXHIBITS
from results.paper.render.layouts import LAPTOP_MODELS, LAYOUTS, MODELS, label_of, title_of
from results.paper.render.sections import sections_of, shown_cells
from tests.results.books import book, cell, every_kind

TABLES = [name for name in EXHIBITS if LAYOUTS[name].has_table and name.startswith("table")]


def test_every_exhibit_has_a_shape_and_a_title():
    assert set(LAYOUTS) == set(EXHIBITS)
    assert title_of("figure5a") == "Figure 5a: token latency of Llama 2-70B over devices"


@pytest.mark.parametrize("exhibit", ["table1", "table2", "table3", "table6", "table8", "figure6"])
def test_without_any_cell_every_place_has_its_word(exhibit):
    cells = shown_cells(book(), exhibit)
    rows = {c.place.row for c in cells}
    assert rows == set(LAYOUTS[exhibit].rows)
    assert {(c.evidence, c.missing_reason) for c in cells} == {
        ("reported", "not found"),
        ("measured", "not run"),
    }


def test_table1_has_each_model_both_switches_and_three_metrics():
    places = {(c.place.row, c.place.column, c.place.metric) for c in shown_cells(book(), "table1")}
    metrics = {"off": "first_token_s", "on": "ttft_s"}
    assert places == {
        (model, switch, metric)
        for model in MODELS
        for switch, first in metrics.items()
        for metric in (first, "token_latency_s", "peak_memory_bytes")
    }


def test_laptops_have_no_70b_model():
    assert {c.place.row for c in shown_cells(book(), "table8")} == set(LAPTOP_MODELS)


def test_lines_of_a_row_are_the_paper_then_measured_simulated_and_each_computation():
    times, memory = sections_of(every_kind(), "table1")
    assert [line.label for line in times.groups[0].lines] == [
        "paper",
        "measured, small",
        "simulated",
    ]
    assert [line.label for line in memory.groups[0].lines] == [
        "paper",
        "measured",
        "computed, as published",
        "computed, ours",
    ]


def test_ours_is_compared_with_the_time_to_first_token_that_the_paper_has():
    reported = cell("table3 llama2-3b accelerate first_token_s", "reported", value=24.0)
    ours = [
        cell("table3 llama2-3b accelerate first_token_s", value=5.0),
        cell("table3 llama2-3b accelerate ttft_s", value=2.0),
    ]
    shown = [c for c in shown_cells(book(reported, *ours), "table3") if c.value is not None]
    assert [c.value for c in shown] == [24.0, 5.0]


def test_systems_that_load_first_have_both_times_to_first_token():
    first, _ = sections_of(book(), "table3")
    titles = [column.title for column in first.columns]
    assert titles == [
        "Transformers: TTFT", "Transformers: TTFT with loading", "Accelerate",
        "Accelerate 2024: TTFT", "Accelerate 2024: TTFT with loading", "Transformers + window",
        "TPI-LLM",
    ]  # fmt: skip
    metrics = [c.metric for c in sections_of(book(), "figure6")[0].columns if c.name == "mp"]
    assert metrics == ["ttft_s", "first_token_s", "token_latency_s"]


def test_not_run_gives_way_to_another_run_of_the_same_place():
    place = "table1 llama2-3b on ttft_s"
    shown = shown_cells(
        book(
            cell(place, missing_reason="not run"),
            cell(place, value=1.0),
            cell(place, missing_reason="oom"),
        ),
        "table1",
    )
    here = [c for c in shown if str(c.place) == place and c.evidence == "measured"]
    assert [c.missing_reason or c.value for c in here] == [1.0, "oom"]


def test_what_could_not_be_simulated_stands_in_the_line_of_the_simulator():
    place = "table1 llama2-3b on ttft_s"
    made = cell(place, "infeasible", missing_reason="infeasible", backend="sim", scale="full")
    (line,) = [
        line
        for line in sections_of(book(made), "table1")[0].groups[0].lines
        if line.label == "simulated"
    ]
    assert line.cells[2] == (made,)


def test_rows_that_the_paper_does_not_have_follow_numbers_by_size():
    cells = [cell(f"figure3 {row} star allreduce_s", value=1.0) for row in ("10", "0.5", "2")]
    (section,) = sections_of(book(*cells), "figure3")
    assert [group.row for group in section.groups] == ["0.5", "2", "10"]


def test_payloads_of_one_place_are_lines_of_their_own():
    place = "figure3 1 star allreduce_s"
    cells = [cell(place, value=v, source=s) for v, s in ((1.0, "4 bytes"), (2.0, "32 KiB"))]
    (section,) = sections_of(book(*cells), "figure3")
    lines = {line.label: line.cells[0] for line in section.groups[0].lines}
    assert lines["measured, 4 bytes"] == (cells[0],)
    assert lines["measured, 32 KiB"] == (cells[1],)
    assert "measured" not in lines


def test_facts_take_their_metrics_from_the_cells():
    cells = [
        cell("table7 dell cpu text", "reported", text="Intel"),
        cell("table7 dell cores count", "reported", value=8.0),
    ]
    (section,) = sections_of(book(*cells), "table7")
    by_name = {column.name: column.metric for column in section.columns}
    assert by_name["cpu"] == "text"
    assert by_name["cores"] == "count"
    assert not any(c.missing_reason == "not run" for c in section.cells())


def test_shares_of_a_row_stand_side_by_side_whatever_their_column():
    cells = [
        cell("figure1b tpi communication allreduce_share", "reported", value=0.7),
        cell("figure1b tpi tpi allreduce_share", value=0.6),
    ]
    (section,) = sections_of(book(*cells), "figure1b")
    paper, ours = section.groups[1].lines
    assert (paper.cells[0], ours.cells[0]) == ((cells[0],), (cells[1],))


def test_labels_for_people():
    assert label_of("llama3.1-8b") == "Llama 3.1-8B"
    assert label_of("off/4") == "off, 4 dev"
    assert label_of("tpi", "figure1b") == "tensor parallel"
    assert label_of("something") == "something"


def test_run_without_a_number_has_its_word_at_every_metric():
    made = cell(
        "figure1b tpi run ttft_s", missing_reason="unusable", scale="small", detail="changed"
    )
    shown = [c for c in shown_cells(book(made), "figure1b") if c.place.row == "tpi"]
    ours = [c for c in shown if c.evidence == "measured"]
    assert {c.missing_reason for c in ours} == {"unusable"}
    assert {c.place.metric for c in ours} == {
        "allreduce_share",
        "compute_share",
        "wait_weights_share",
    }


def test_metric_that_a_good_run_lacks_is_not_called_not_run():
    made = cell("table1 llama2-3b on ttft_s", value=1.0, scale="small")
    (shown,) = [
        c
        for c in shown_cells(book(made), "table1")
        if str(c.place) == "table1 llama2-3b on token_latency_s" and c.evidence == "measured"
    ]
    assert (shown.missing_reason, shown.detail) == ("not found", "the run does not say")
