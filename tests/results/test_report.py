import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from results.book import Book
from results.cells import EXHIBITS
from results.claim_list import CLAIMS
from results.exhibits import title_of
from results.index import Entry
from results.report import ReportError, main, report_html, write_report
from results.report_exhibits import FIGURES
from results.report_runs import command_of, rerun_section
from results.report_sources import sources_section
from results.report_trust import flattened
from results.reported import reported_cells
from results.schema import RunRecord
from tests.results.claim_books import book, cell
from tests.results.examples import as_calibration, as_config, as_environment
from tests.results.test_evidence import stored
from tests.results.test_proofs import PROOF

EVIL = "<script>alert(1)</script>"
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
_VOID = ("meta", "img")


class Checker(HTMLParser):
    """Follows open elements, and collects what the page would fetch and what it links to."""

    def __init__(self):
        super().__init__()
        self.open, self.fetched, self.links, self.ids, self.tags = [], [], [], [], set()

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.tags.add(tag)
        self.fetched += [v for k, v in attrs if k in ("src", "srcset", "data", "poster")]
        self.links += [values["href"]] if "href" in values else []
        self.ids += [values["id"]] if "id" in values else []
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def checked(text):
    """The page is whole, alone, and its links lead somewhere in it."""
    checker = Checker()
    checker.feed(text)
    assert checker.open == []
    assert not re.search(r"https?://|@import|url\(", text)
    assert all(value.startswith("data:") for value in checker.fetched)
    assert {link.removeprefix("#") for link in checker.links} <= set(checker.ids)
    assert len(checker.ids) == len(set(checker.ids))
    assert not checker.tags & {"script", "link", "iframe", "object"}
    return text


MODEL = {"model": {"name": "llama2-3b"}}


def full(**changes) -> Book:
    """The paper's cells, one of every kind of evidence, and a record that says evil things."""
    place = "table1 llama2-3b on token_latency_s"
    record = RunRecord(
        "tpi-1", "tpi", "ok",
        config=as_config(MODEL | {"testbed": {"name": EVIL, "backend": "docker"}}),
        environment=as_environment({"host": {"cpu_model": EVIL, "versions": {"torch": "2.13.0"}}}),
        calibration=as_calibration({"proofs": [PROOF]}),
    )  # fmt: skip
    simulated = RunRecord(
        "tpi-2", "tpi", "ok",
        config=as_config(MODEL | {"testbed": {"backend": "sim"}}),
        calibration=as_calibration(
            {"simulator": {"name": "epyc", "digest": "d", "content": {"rate": 7.5}}}
        ),
    )  # fmt: skip
    cells = [
        *reported_cells(),
        cell(place, 2, dilation=8.0, run_id="tpi-1", detail=EVIL),
        cell(place, 2.2, "simulated", run_id="tpi-2"),
        cell("table1 llama2-3b on peak_memory_bytes", 1 << 30, "computed", source="ours"),
        cell("table1 llama2-70b off ttft_s", "infeasible", "infeasible", detail="needs 257 GiB"),
    ]
    entry = Entry("table1", "llama2-3b", "on", "tpi", (f"workload.prompt={EVIL}",), "tpi-1")
    records = {"tpi-1": record, "tpi-2": simulated}
    values = {"records": records, "entries": (entry,), "problems": (f"bad {EVIL}",)} | changes
    return book(*cells, **values)


def test_report_is_one_page_that_needs_nothing_else():
    checked(report_html(full(), dict.fromkeys(FIGURES, SVG)))


def test_each_row_has_the_name_that_the_paper_gives_it_there():
    text = report_html(full(), {})
    figure = text[text.index('id="figure1b"') : text.index('id="figure1c"')]
    assert ">tensor parallel</th>" in figure
    assert "TPI-LLM" not in figure


def test_everything_that_others_wrote_is_escaped():
    text = report_html(full(), {})
    assert "<script" not in text
    # The detail, the problem, the testbed's name, the processor, the command.
    assert text.count("&lt;script&gt;alert(1)") >= 5


def test_an_empty_book_gives_every_section_and_words():
    text = checked(report_html(book(), {}))
    for claim in CLAIMS:
        assert f'id="claim-{claim.name}"' in text
    for exhibit in EXHIBITS:
        assert title_of(exhibit) in text
    for words in (
        "None: every record could be read.",
        "Nothing was both simulated and measured",
        "No simulated run is in these records.",
        "No run on emulated devices",
        "No measured run has a timing.",
        "No run record says where it ran.",
        "The index lists no run.",
    ):
        assert words in text


def test_kinds_of_evidence_are_coloured_apart():
    text = report_html(full(), {})
    for kind in ("dilated", "simulated", "computed", "reported", "absent"):
        assert f'class="cell {kind}"' in text
    assert "2 s ᵈ⁸" in text


def test_sections_show_what_the_book_has():
    text = report_html(full(), {})
    assert "+10.0 %" in text  # simulated 2.2 s, measured 2 s
    assert "content.rate" in text
    assert "round trip" in text
    assert "version of torch" in text
    assert "make table1 SCALE=small" in text
    assert "make table1 SCALE=small RETRY=1" in text
    assert "1 source version among the records." in text
    assert "bad &lt;script" in text


def test_the_command_of_a_cell_is_quoted_for_a_shell():
    entry = Entry("table1", "a", "on", "tpi", ("workload.prompt=What's new?", "devices=8"))
    assert command_of(entry, Path("my runs/small")) == (
        """python run.py 'workload.prompt=What'"'"'s new?' devices=8 'systems=[tpi]'"""
        " 'results_dir=my runs/small'"
    )


def test_figures_are_taken_from_a_folder(tmp_path):
    for name in FIGURES:
        (tmp_path / f"{name}.svg").write_bytes(SVG)
    write_report(full(), tmp_path / "out" / "report.html", tmp_path)
    text = checked((tmp_path / "out" / "report.html").read_text())
    assert text.count("data:image/svg+xml;base64,") == len(FIGURES)


def test_figures_that_are_missing_are_named_and_the_rest_is_written(tmp_path):
    (tmp_path / "figure3.svg").write_bytes(SVG)
    with pytest.raises(ReportError, match=r"figure6: cannot read .*figure6\.svg"):
        write_report(full(), tmp_path / "report.html", tmp_path)
    text = (tmp_path / "report.html").read_text()
    assert text.count("data:image/svg+xml;base64,") == 1
    assert "figure6: cannot read" in text


def test_flattened_names_every_value_by_its_path():
    assert dict(flattened({"a": {"b": [1, {"c": "x"}]}, "d": None})) == {
        "a.b[0]": 1, "a.b[1].c": "x", "d": None,
    }  # fmt: skip


@pytest.mark.slow
def test_command_writes_a_report_with_figures_drawn_anew(tmp_path, capsys):
    stored(tmp_path, {"tpi": 100, "accelerate": 1000})
    assert main([str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'report.html'}\n"
    text = checked((tmp_path / "report.html").read_text())
    assert text.count("data:image/svg+xml;base64,") == len(FIGURES)


def test_command_refuses_a_folder_without_an_index_in_one_line(tmp_path, capsys):
    assert main([str(tmp_path)]) != 0
    assert capsys.readouterr().err.count("\n") == 1


def test_records_of_older_source_are_named():
    entries = [
        Entry("table1", row, "on", "tpi", (), run_id, source=source)
        for row, run_id, source in (("a", "tpi-1", "old"), ("b", "tpi-2", "new"), ("c", "x", ""))
    ]
    sources = {"tpi": "new"}
    text = str(sources_section(replace(book(entries=tuple(entries)), sources=sources)))
    assert "2 source versions among the records." in text
    assert "old (older)</td><td>tpi-1</td>" in text
    assert "new (present)</td><td>tpi-2</td>" in text
    assert "does not say which version 1 cell" in text
    only_old = replace(book(entries=(entries[0],)), sources=sources)
    assert "2 source versions" in str(sources_section(only_old))


def test_a_failure_and_a_foreign_record_are_named_in_the_runs():
    failed = Entry("table1", "a", "on", "tpi", (), failure="boom")
    foreign = Entry("table1", "b", "on", "galaxy", (), "tpi-1")
    records = {"tpi-1": RunRecord("tpi-1", "tpi", "ok")}
    text = str(rerun_section(book(entries=(failed, foreign), records=records)))
    assert "<td>failed: boom</td>" in text
    assert "<td>unusable</td>" in text
