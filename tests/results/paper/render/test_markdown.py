import pytest

from results.paper.cell import EXHIBITS
from results.paper.render.layouts import MODELS, label_of
from results.paper.render.markdown import figure_markdown, markdown
from results.records.schema import RunRecord
from tests.results.books import book, cell, every_kind
from tests.results.examples import as_config

TABLES = [name for name in EXHIBITS if name.startswith("table")]


@pytest.mark.parametrize("exhibit", TABLES)
def test_markdown_is_aligned_when_read_as_text(exhibit):
    blocks = [b for b in markdown(every_kind(), exhibit).split("\n\n") if b.startswith("|")]
    assert blocks
    for block in blocks:
        assert len({len(line) for line in block.splitlines()}) == 1


def test_table_has_every_model_every_mark_and_the_legend():
    text = markdown(every_kind(), "table1")
    for words in (
        *map(label_of, MODELS), "[2 s]", "**1.25 s (1.20-1.30)**", "*~1.5 s*", "500 ms ᵈ⁸",
        "= 3 GiB", "= 256 MiB", "**oom** (2)", "[oom]", "not run", "not found", "unusable (",
        "predicted by the simulator", "token latency",
    ):  # fmt: skip
        assert words in text


def test_paper_stands_right_above_ours():
    lines = markdown(every_kind(), "table1").splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("| Llama 2-3B"))
    assert "| paper" in lines[at]
    assert "| measured, small" in lines[at + 1]
    column = lines[at].split("|").index(next(c for c in lines[at].split("|") if "[2 s]" in c))
    assert "**1.25 s" in lines[at + 1].split("|")[column]


def test_reasons_are_numbered_notes_below():
    lines = markdown(every_kind(), "table1").splitlines()
    notes = [line for line in lines if line[:1].isdigit()]
    assert "2. oom: rank 0" in notes
    assert any(line.endswith("needs 257 GiB of disk, 80 free") for line in notes)
    assert any(line.endswith("record x: changed") for line in notes)
    number = next(line for line in notes if "257 GiB" in line)[0]
    rows = [line for line in lines if f"infeasible ({number})" in line]
    assert len(rows) == 2  # of times and of memory
    assert all("measured" in row for row in rows)


def test_smoke_is_said_in_every_cell_that_ran():
    lines = markdown(every_kind("smoke"), "table1").splitlines()
    (row,) = [line for line in lines if "**1.25 s (1.20-1.30)**" in line]
    assert "measured, smoke" in row
    assert "**1.25 s (1.20-1.30)** smoke" in row
    assert "[2 s] smoke" not in "\n".join(lines)
    assert "what ran in the place of the paper's" in "\n".join(lines)


def test_a_model_in_the_papers_place_is_named_at_every_scale():
    record = RunRecord(
        "tpi-1", "tpi", "ok", config=as_config({"model": {"name": "tinyllama-1.1b"}})
    )
    made = cell("figure5a 8 tpi token_latency_s", value=3.0, scale="small", run_id="tpi-1")
    text = figure_markdown(book(made, records={"tpi-1": record}), "figure5a")
    assert "**3 s** tinyllama-1.1b" in text
    assert "Measured at scale small; tinyllama-1.1b in the paper's place" in text


def test_what_is_simulated_has_no_scale():
    lines = markdown(every_kind("smoke"), "table1").splitlines()
    assert any("| simulated " in line for line in lines)
    assert not any("simulated, smoke" in line for line in lines)


def test_doubt_that_all_values_share_is_said_once_without_a_number():
    cells = [
        cell(f"table1 {model} on ttft_s", "reported", value=2.0, detail=f"{doubt}runs not given")
        for model, doubt in (("llama2-3b", ""), ("llama2-7b", "above the swap; "))
    ]
    text = markdown(book(*cells), "table1")
    assert "- paper: runs not given\n" in text
    assert "1. above the swap\n" in text
    assert text.count("(1)") == 1


def test_path_of_the_folder_is_no_part_of_a_note(tmp_path):
    made = cell(
        "table1 yi-34b on ttft_s", missing_reason="unusable", detail=f"record {tmp_path}/a/run.json"
    )
    assert "record a/run.json" in markdown(book(made, folder=tmp_path), "table1")


def test_figure_says_scale_dilation_and_how_to_read_it():
    made = cell("figure5a 8 tpi token_latency_s", value=3.0, dilation=8.0, scale="small")
    text = figure_markdown(book(made), "figure5a")
    assert "![Figure 5a: token latency of Llama 2-70B over devices](figure5a.svg)" in text
    assert "Measured at scale small; dilation 8: times are divided by 8." in text
    assert "hatched: simulated" in text
    assert "3 s ᵈ⁸" in text


def test_words_of_a_record_do_not_break_the_table():
    made = cell("table7 dell cpu text", "reported", text="a|b<c", detail="x|y\x1b[2J")
    text = markdown(book(made), "table7")
    assert "[a/b&lt;c]" in text
    assert "\x1b" not in text
