import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from results.paper.cell import EXHIBITS
from results.paper.cells.result_set import ResultSet
from results.paper.claims.judge import basis_of_all, judge_claims
from results.paper.claims.list import CLAIMS
from results.paper.index import Entry
from results.paper.render.layouts import title_of
from results.paper.report.exhibits import FIGURES
from results.paper.report.main import ReportError, html_of, main, write_report
from results.paper.report.runs import command_of
from results.paper.values.paper_values import reported_cells
from results.records.schema import RunRecord
from tests.results.claim_books import book, cell
from tests.results.examples import as_calibration, as_config, as_environment
from tests.results.paper.claims.test_evidence import stored
from tests.results.paper.report.test_trust import PROOF

SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
_VOID = ("meta", "img")


def evil(name):
    """What a program or user could write there: markup, quotes, control characters."""
    return f"""<script>alert('{name}')</script>" onclick="x" & \n\x1b[31m"""


class Page(HTMLParser):
    """A page as a reader sees it; parsing fails where an element is not closed.

    `cells` has the texts of each table's rows by the `id` above it, `classes` those of each text.
    """

    def __init__(self, text):
        super().__init__()
        self.text = ""
        self.open: list[tuple[str, str]] = []
        self.fetched: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.classes: dict[str, set[str]] = {}
        self.cells: dict[str, list[list[str]]] = {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.tags.add(tag)
        self.attributes |= set(values)
        self.fetched += [v for k, v in attrs if k in ("src", "srcset", "data", "poster")]
        self.links += [values["href"]] if "href" in values else []
        self.ids += [values["id"]] if "id" in values else []
        if tag == "tr":
            self.cells.setdefault(self.ids[-1], []).append([])
        if tag in ("td", "th"):
            self.cells[self.ids[-1]][-1].append("")
        if tag not in _VOID:
            self.open.append((tag, values.get("class", "")))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        self.text += data
        if data.strip():
            self.classes.setdefault(data.strip(), set()).add(self.open[-1][1])
        if {"td", "th"} & {tag for tag, _ in self.open}:
            row = self.cells[self.ids[-1]][-1]
            row[-1] = f"{row[-1]} {data.strip()}".strip()

    @property
    def words(self):
        """All text, each space once."""
        return " ".join(self.text.split())


def page_of(shown, images=None, failures=()):
    """The page: whole, alone, and its links lead somewhere in it."""
    text = html_of(shown, images or {}, failures)
    return checked(text)


def checked(text):
    page = Page(text)
    assert text.startswith("<!doctype html>\n<html")
    assert not re.search(r"https?://|@import|url\(", text)
    assert all(value.startswith("data:") for value in page.fetched)
    assert {link.removeprefix("#") for link in page.links} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert not page.tags & {"script", "link", "iframe", "object"}
    return page


def full(**changes) -> ResultSet:
    """The paper's cells, one of every kind of evidence, and records that say evil things."""
    place = "table1 llama2-3b on token_latency_s"
    record = RunRecord(
        "tpi-1", evil("system"), "ok",
        config=as_config({
            "model": {"name": "llama2-3b"},
            "testbed": {"name": evil("testbed"), "backend": "docker"},
        }),
        environment=as_environment(
            {"host": {"cpu_model": evil("processor"), "versions": {"torch": "2.13.0"}}}
        ),
        calibration=as_calibration({"proofs": [PROOF | {"problems": [evil("probe")]}]}),
    )  # fmt: skip
    simulated = RunRecord(
        "tpi-2", "tpi", "ok",
        config=as_config({"model": {"name": "llama2-3b"}, "testbed": {"backend": "sim"}}),
        calibration=as_calibration(
            {"simulator": {"name": evil("calibration"), "content": {"rate": 7.5}}}
        ),
    )  # fmt: skip
    cells = [
        *reported_cells(),
        cell(place, 2, dilation=8.0, run_id="tpi-1", detail=evil("note"), source=evil("source")),
        cell(place, 2.2, "simulated", run_id="tpi-2"),
        cell("table1 llama2-3b on peak_memory_bytes", 1 << 30, "computed", source="ours"),
        cell("table1 llama2-70b off ttft_s", "infeasible", "infeasible", detail=evil("reason")),
    ]
    entries = (
        Entry("table1", "llama2-3b", "on", "tpi", (f"workload.prompt={evil('prompt')}",), "tpi-1"),
        Entry("table1", "llama2-70b", "off", "tpi", (), refusal=evil("refusal")),
    )
    records = {"tpi-1": record, "tpi-2": simulated}
    values = {"records": records, "entries": entries, "problems": (f"bad {evil('problem')}",)}
    return book(*cells, **(values | changes))


@pytest.fixture(scope="module")
def page():
    images = {name: SVG for name in FIGURES if name != "figure6"}
    return page_of(full(), images, [evil("failure")])


@pytest.fixture(scope="module")
def empty():
    return page_of(book())


def test_what_others_wrote_is_shown_as_text_and_is_never_markup(page):
    for name in (
        *("system", "testbed", "processor", "probe", "calibration", "note", "source", "reason"),
        *("prompt", "refusal", "problem", "failure"),
    ):
        # A shell quotes a command's own quotes.
        quote = "'" if name != "prompt" else """'"'"'"""
        assert f"<script>alert({quote}{name}{quote})</script>" in page.text, name
    assert "\x1b" not in page.text
    assert "onclick" not in page.attributes


def test_a_table_has_the_papers_values_above_ours():
    place = "table1 llama2-3b on token_latency_s"
    ours = (cell(place, 2, dilation=8.0, detail="slow host"), cell(place, 2.2, "simulated"))
    rows = page_of(book(*reported_cells(), *ours)).cells["table1"]
    start = next(i for i, row in enumerate(rows) if row[0] == "Llama 2-3B")
    assert rows[0] == [
        "", "source", "off: TTFT with loading", "off: token latency", "on: TTFT",
        "on: token latency",
    ]  # fmt: skip
    # The row's name spans its lines; numbers of notes are left out.
    assert [[re.sub(r" \(.*", "", text) for text in row] for row in rows[start : start + 3]] == [
        ["Llama 2-3B", "paper", "2.3 s", "1 s", "2 s", "1.9 s"],
        ["measured, small", "not run", "not run", "not found", "2 s ᵈ⁸"],
        ["simulated", "not run", "not run", "not found", "2.2 s"],
    ]


def test_kinds_of_evidence_are_coloured_apart(page):
    for text, kind in (
        ("1.9 s", "reported"), ("2 s ᵈ⁸", "dilated"), ("2.2 s", "simulated"),
        ("1 GiB", "computed"), ("not run", "absent"), ("infeasible", "absent"),
    ):  # fmt: skip
        assert f"cell {kind}" in page.classes[text], text


def test_each_row_has_the_name_that_the_paper_gives_it_there(page):
    names = {row[0] for row in page.cells["figure1b"]}
    assert "tensor parallel" in names
    assert "TPI-LLM" not in names


def test_sections_show_what_the_book_has(page):
    assert "Scale small; 2 run records for 2 cells, 1 that cannot be used." in page.words
    assert ["content.rate", "7.5"] in page.cells["calibration"]
    assert ["version of torch", "2.13.0"] in page.cells["environment"]
    assert [row[-1] for row in page.cells["validation"]] == ["error", "+10.0 %"]
    assert page.cells["validity"][1] == [
        "round trip", "64 ms", "64 ms to 96 ms", "50.0 %", "10 %", "3", "1",
    ]  # fmt: skip
    assert "cores used by other programs: at most 0.01" in page.words
    assert "make table1 SCALE=small RETRY=1" in page.words
    assert "1 source version among the records." in page.words


def test_claims_come_with_verdict_rule_and_cells(page):
    judgements = judge_claims(full())
    assert basis_of_all(full(), judgements) in page.words
    rows = page.cells["claims"][1:]
    assert [row[:2] for row in rows] == [[j.claim.sentence, j.words] for j in judgements]
    assert {row[2] for row in rows} >= {"it gives none", "reproduced", "not reproduced"}
    assert all(f"Rule: {claim.rule}" in page.words for claim in CLAIMS)
    assert all(str(place) in page.classes for claim in CLAIMS for place in claim.places)


def test_an_empty_book_gives_every_section_and_words(empty):
    assert {f"claim-{claim.name}" for claim in CLAIMS} | set(EXHIBITS) <= set(empty.ids)
    for words in (
        *(title_of(exhibit) for exhibit in EXHIBITS),
        "None: every record could be read.",
        "Nothing was both simulated and measured",
        "No simulated run is in these records.",
        "No run on emulated devices",
        "No measured run has a timing.",
        "No run record says where it ran.",
        "The index lists no run.",
    ):
        assert words in empty.words


def test_the_command_of_a_cell_is_quoted_for_a_shell():
    entry = Entry("table1", "a", "on", "tpi", ("workload.prompt=What's new?", "devices=8"))
    assert command_of(entry, Path("my runs/small")) == (
        """python run.py 'workload.prompt=What'"'"'s new?' devices=8 'systems=[tpi]'"""
        " 'results_dir=my runs/small'"
    )


def test_figures_that_are_missing_are_named_and_the_rest_is_written(tmp_path):
    for name in FIGURES:
        (tmp_path / f"{name}.svg").write_bytes(SVG)
    (tmp_path / "figure6.svg").unlink()
    with pytest.raises(ReportError, match=r"^figure6: cannot read .*figure6\.svg"):
        write_report(full(), tmp_path / "out" / "report.html", tmp_path)
    page = checked((tmp_path / "out" / "report.html").read_text())
    assert len(page.fetched) == len(FIGURES) - 1
    assert "figure6: cannot read" in page.text


@pytest.mark.slow
def test_command_writes_a_report_with_figures_drawn_anew(tmp_path, capsys):
    stored(tmp_path, {"tpi": 100, "accelerate": 1000})
    assert main([str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'report.html'}\n"
    assert len(checked((tmp_path / "report.html").read_text()).fetched) == len(FIGURES)


def test_command_refuses_a_folder_without_an_index_in_one_line(tmp_path, capsys):
    assert main([str(tmp_path)]) != 0
    assert capsys.readouterr().err.count("\n") == 1


def test_records_of_older_source_are_named():
    entries = [
        Entry("table1", row, "on", "tpi", (), run_id, source=source)
        for row, run_id, source in (("a", "tpi-1", "old"), ("b", "tpi-2", "new"), ("c", "x", ""))
    ]
    sources = {"tpi": "new"}
    page = page_of(replace(book(entries=tuple(entries)), sources=sources))
    assert "2 source versions among the records." in page.words
    assert page.cells["sources"][1:] == [
        ["tpi", "old (older)", "tpi-1"], ["tpi", "new (present)", "tpi-2"],
    ]  # fmt: skip
    assert "does not say which version 1 cell rest on" in page.words
    only_old = page_of(replace(book(entries=(entries[0],)), sources=sources))
    assert only_old.cells["sources"][2] == ["tpi", "new (present)", "none"]


def test_what_became_of_each_run_is_said():
    entries = (
        Entry("table1", "a", "on", "tpi", (), failure="boom"),
        Entry("table1", "b", "on", "galaxy", (), "tpi-1"),
        Entry("table1", "c", "on", "tpi", (), "tpi-1"),
        Entry("table1", "d", "on", "tpi", (), "tpi-9"),
        Entry("table1", "e", "on", "tpi", (), refusal="no Docker"),
        Entry("table1", "f", "on", "tpi", ()),
    )
    records = {"tpi-1": RunRecord("tpi-1", "tpi", "ok")}
    rows = page_of(book(entries=entries, records=records)).cells["rerun"]
    states = [row[2] for row in rows]
    assert states == [
        "state", "failed: boom", "unusable", "ok", "unusable", "refused: no Docker", "not run",
    ]  # fmt: skip
