import json
import subprocess
import sys
from pathlib import Path

import pytest

from results.paper.cell import ALL_EXHIBITS
from results.paper.cells.load import open_result_set
from results.paper.claims import judge
from results.paper.index import Entry, Index, write_index
from results.paper.render import main as render
from results.paper.render.main import (
    RenderError,
    exhibits_named,
    main,
    render_result_set,
)
from results.paper.report import main as report
from results.records.schema import RecordError, RunRecord
from results.records.store import RunStore
from tests.results.books import every_kind
from tests.results.examples import as_config, make_repeat
from tpi.errors import ConfigError

ROOT = Path(__file__).parents[4]
MODELS = ("llama2-3b", "llama2-7b", "llama2-13b", "llama2-70b")


def run_id(model):
    return f"tpi-{MODELS.index(model):016x}"


@pytest.fixture
def folder(tmp_path):
    """Table 1 with a whole record for each of four models, and one that was refused."""
    path = tmp_path / "records"
    for model in MODELS:
        record = RunRecord(
            run_id(model), "tpi", "ok", config=as_config({"testbed": {"backend": "local"}})
        )
        RunStore(path).append(record, make_repeat())
    entries = [Entry("table1", model, "on", "tpi", (), run_id(model)) for model in MODELS]
    entries.append(Entry("table1", "yi-34b", "on", "tpi", (), "", "needs 128 GiB, 80 free"))
    write_index(path, Index("small", tuple(entries)))
    return path


def row_of(text, label):
    """The line of what was measured in the group of a row, of the table of times."""
    lines = text.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith(f"| {label} "))
    return lines[at + 1]


def test_record_that_is_changed_older_or_half_written_is_named_and_the_rest_renders(folder):
    changed = folder / run_id("llama2-3b") / "samples-000.jsonl"
    changed.write_bytes(changed.read_bytes().replace(b'"token": 8', b'"token": 9', 1))
    older = folder / run_id("llama2-7b") / "run.json"
    older.write_text(json.dumps({**json.loads(older.read_text()), "schema_version": 0}))
    half = folder / run_id("llama2-13b") / "run.json"
    half.write_bytes(half.read_bytes()[:200])

    render_result_set(open_result_set(folder), folder / "out", ["table1"])

    text = (folder / "out" / "table1.md").read_text()
    for label in ("Llama 2-3B", "Llama 2-7B", "Llama 2-13B"):
        assert "unusable (" in row_of(text, label)
    assert "**300 ms**" in row_of(text, "Llama 2-70B")
    assert "infeasible (" in row_of(text, "Yi-34B")
    for words in (
        f"{run_id('llama2-3b')}/samples-000.jsonl: changed after it was written",
        f"{run_id('llama2-7b')}/run.json: schema version 0",
        f"{run_id('llama2-13b')}/run.json: not JSON, perhaps half written",
        "needs 128 GiB, 80 free",
    ):
        assert words in text
    assert str(folder) not in text
    for suffix in ("tex", "csv"):
        assert "unusable" in (folder / "out" / f"table1.{suffix}").read_text()


def test_one_changed_byte_of_a_record_is_enough(folder):
    path = folder / run_id("llama2-3b") / "run.json"
    path.write_bytes(path.read_bytes().replace(b'"median": 0.3', b'"median": 0.2', 1))
    render_result_set(open_result_set(folder), folder / "out", ["table1"])
    text = (folder / "out" / "table1.md").read_text()
    assert "was changed after it was written" in text
    assert "200 ms" not in text


def test_paper_and_computed_values_are_beside_ours(folder):
    render_result_set(open_result_set(folder), folder / "out", ["table1"])
    text = (folder / "out" / "table1.md").read_text()
    assert "[26.1 s]" in text
    assert "= " in text
    assert "computed, as published" in text


def test_every_exhibit_has_its_files(tmp_path):
    paths = render_result_set(every_kind(), tmp_path, ["table1", "table4", "figure5a"])
    assert sorted(path.name for path in paths) == [
        *(f"figure5a.{suffix}" for suffix in ("csv", "md", "png", "svg")),
        *(f"table{n}.{suffix}" for n in (1, 4) for suffix in ("csv", "md", "tex")),
    ]
    assert all(path.stat().st_size for path in paths)


def test_exhibit_that_fails_is_named_and_the_others_are_written(tmp_path, monkeypatch):
    def broken(book, exhibit):
        if exhibit == "table2":
            raise ZeroDivisionError("no rows")
        return "fine"

    monkeypatch.setattr(render, "markdown", broken)
    with pytest.raises(RenderError, match="table2: ZeroDivisionError: no rows"):
        render_result_set(every_kind(), tmp_path, ["table1", "table2", "table3"])
    names = {path.name for path in tmp_path.iterdir()}
    assert {"table1.md", "table3.md", "table3.csv"} <= names
    assert (tmp_path / "table3.md").read_text() == "fine"


def test_words_of_the_command_line_name_exhibits():
    assert exhibits_named(None) == list(ALL_EXHIBITS)
    assert exhibits_named(["figure1", "table3"]) == ["table3", "figure1a", "figure1b", "figure1c"]
    assert exhibits_named(["figure5b"]) == ["figure5b"]
    with pytest.raises(ConfigError, match="'table9'"):
        exhibits_named(["table9"])


def test_same_records_give_the_same_files(folder, tmp_path):
    names = ["table1", "figure5a"]
    first = render_result_set(open_result_set(folder), tmp_path / "a", names)
    again = render_result_set(open_result_set(folder), tmp_path / "b", names)
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in again]


def test_command_renders_beside_the_records_and_says_what_is_unusable(folder, capsys):
    (folder / run_id("llama2-3b") / "run.json").write_text("{")
    assert main([str(folder), "--only", "table1"]) == 0
    said = capsys.readouterr()
    assert f"3 files in {folder / 'rendered'}" in said.out
    assert said.err.startswith(f"unusable: record {folder / run_id('llama2-3b')}")
    assert (folder / "rendered" / "table1.tex").is_file()


@pytest.mark.parametrize("command", [judge.main, report.main])
def test_claims_and_report_name_what_they_cannot_use(folder, tmp_path, capsys, command):
    (folder / run_id("llama2-3b") / "run.json").write_text("{")
    out = ["--out", str(tmp_path / "report.html")] if command is report.main else []
    assert command([str(folder), *out]) == 0
    assert capsys.readouterr().err.startswith(f"unusable: record {folder / run_id('llama2-3b')}")


def test_command_without_an_index_is_one_line_and_no_success(tmp_path, capsys):
    assert main([str(tmp_path)]) == RecordError.exit_status
    said = capsys.readouterr().err
    assert said.startswith("error: index ")
    assert len(said.splitlines()) == 1


@pytest.mark.slow
def test_tables_need_neither_matplotlib_nor_torch(folder):
    code = (
        "import sys\nfrom results.paper.render.main import main\n"
        f"status = main([{str(folder)!r}, '--only', 'table1'])\n"
        "bad = {'matplotlib', 'torch'} & set(sys.modules)\n"
        "sys.exit(f'{bad}' if bad or status else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
