"""Every table in the README is what its committed records give, and its warning stands."""

import hashlib
import re
from pathlib import Path

import pytest

from harness.paper import allreduce_study as study
from harness.paper.allreduce_file import read_points
from results.paper.cell import VALIDATION
from results.paper.cells.load import open_result_set
from results.paper.index import INDEX_FILE
from results.paper.render import markdown as paper_tables
from results.paper.render import validation_table
from results.records.comparison_table import markdown
from results.records.store import RunStore

ROOT = Path(__file__).parent.parent
PUBLISHED = ROOT / "results" / "published"
README = (ROOT / "README.md").read_text(encoding="utf-8")
STUDIES = re.findall(r"<!-- study: (\S+) -->\n(.*?)<!-- end -->", README, re.DOTALL)
TABLES = re.findall(r"<!-- records: (\S+) -->\n(.*?)<!-- end -->", README, re.DOTALL)
PAPERS = re.findall(r"<!-- paper: (\S+) (\S+) -->\n(.*?)<!-- end -->", README, re.DOTALL)


def test_picture_is_there():
    assert (ROOT / "docs" / "demo.svg").is_file()


def test_every_published_set_is_in_the_readme():
    assert {"demo", "llama2-70b"} <= {name for name, _ in TABLES}
    folders = {path.name for path in PUBLISHED.iterdir() if path.is_dir()}
    papers = {name for name in folders if (PUBLISHED / name / INDEX_FILE).is_file()}
    assert {name for name, _ in TABLES} == folders - papers
    assert {name for name, _, _ in PAPERS} == papers
    assert sorted(name for name, _ in STUDIES) == sorted(p.name for p in PUBLISHED.glob("*.json"))


@pytest.mark.parametrize(("name", "text"), TABLES, ids=[name for name, _ in TABLES])
def test_table_is_what_its_records_give(name, text):
    records, problems = RunStore(PUBLISHED / name).scan()
    assert not problems
    assert text.strip() == markdown(records).strip()


def test_paper_tables_are_what_their_records_give():
    books = {name: open_result_set(PUBLISHED / name) for name in {name for name, _, _ in PAPERS}}
    for name, exhibit, text in PAPERS:
        book = books[name]
        assert not book.problems
        if exhibit == VALIDATION:
            drawn = validation_table.markdown(book)
        else:
            drawn = paper_tables.markdown(book, exhibit)
        assert text.strip() == drawn.strip(), (name, exhibit)


def test_records_of_the_paper_are_those_whose_hashes_are_listed():
    for name in {name for name, _, _ in PAPERS}:
        folder = PUBLISHED / name
        lines = (folder / "SHA256SUMS").read_text().splitlines()
        listed = {path: digest for digest, path in (line.split("  ") for line in lines)}
        there = {path.relative_to(folder).as_posix() for path in folder.glob("*/run.json")}
        assert set(listed) == {INDEX_FILE, *there}
        for path, digest in listed.items():
            assert hashlib.sha256((folder / path).read_bytes()).hexdigest() == digest, path


@pytest.mark.parametrize(("name", "text"), STUDIES, ids=[name for name, _ in STUDIES])
def test_study_is_what_its_figures_give(name, text):
    assert text.strip() == study.markdown(read_points(PUBLISHED / name))


def test_warning_about_workers_stands():
    text = " ".join(README.split())
    assert (
        "Every worker you add can reconstruct your conversation if it holds the public model. "
        "Add only devices you trust as you trust the master." in text
    )
