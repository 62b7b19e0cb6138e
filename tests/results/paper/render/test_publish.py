import subprocess

import pytest
from msgspec.structs import replace

from results.paper.cells.result_set import read_result_set
from results.paper.index import Entry, Index, read_index, write_index
from results.paper.render.publish import SUMS_FILE, main, publish
from results.records.schema import RunRecord
from results.records.store import RunStore
from tests.results.examples import as_config, make_repeat
from tpi.errors import ConfigError

ONE, TWO = "tpi-00000000000000aa", "tpi-00000000000000bb"


@pytest.fixture
def folder(tmp_path):
    """A run of Table 1, one of Table 2, and a place of Table 1 that was not run."""
    path = tmp_path / "records"
    for run_id in (ONE, TWO):
        record = RunRecord(run_id, "tpi", "ok", config=as_config({"testbed": {"backend": "local"}}))
        RunStore(path).append(record, make_repeat())
    entries = (
        Entry("table1", "llama2-3b", "on", "tpi", (), ONE),
        Entry("table2", "llama2-3b", "on/2", "tpi", (), TWO),
        Entry("table1", "llama2-7b", "on", "tpi", ()),
    )
    write_index(path, Index("small", entries))
    return path


def test_an_exhibit_is_copied_with_its_records_and_their_sums(folder, tmp_path):
    out = tmp_path / "published"
    assert publish(folder, out, ["table1"]) == [ONE]
    book = read_result_set(out)
    assert (list(book.records), book.problems) == ([ONE], ())
    assert [entry.row for entry in book.entries] == ["llama2-3b", "llama2-7b"]
    done = subprocess.run(["sha256sum", "-c", SUMS_FILE], cwd=out, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["index.json: OK", f"{ONE}/run.json: OK"]


def test_a_record_that_cannot_be_used_is_not_published(folder, tmp_path, capsys):
    path = folder / ONE / "samples-000.jsonl"
    path.write_bytes(path.read_bytes()[:-1])
    assert main([str(folder), str(tmp_path / "out"), "--only", "table1"]) == 2
    assert capsys.readouterr().err.startswith(f"error: cannot be published: samples {folder}")
    assert not (tmp_path / "out").exists()
    assert main([str(folder), str(tmp_path / "out"), "--only", "table2"]) == 0


def test_only_what_a_record_names_is_copied(folder, tmp_path):
    (folder / ONE / "notes.txt").write_text("mine")
    publish(folder, tmp_path / "out", ["table1"])
    found = sorted(path.name for path in (tmp_path / "out" / ONE).iterdir())
    assert found == ["run.json", "samples-000.jsonl"]


def test_a_broken_run_stops_no_other_of_a_longer_name(folder, tmp_path):
    again = f"{ONE}-2"
    entries = read_index(folder).entries
    write_index(folder, Index("small", (*entries, replace(entries[1], row="x", run_id=again))))
    (folder / again).mkdir()
    (folder / again / "run.json").write_text("{")
    assert publish(folder, tmp_path / "out", ["table1"]) == [ONE]
    with pytest.raises(ConfigError, match="cannot be published"):
        publish(folder, tmp_path / "out2", ["table2"])


def test_nothing_is_written_over(folder, tmp_path):
    publish(folder, tmp_path / "out", ["table2"])
    with pytest.raises(ConfigError, match="is there already"):
        publish(folder, tmp_path / "out", ["table1"])


def test_an_exhibit_without_runs_is_refused(folder, tmp_path):
    with pytest.raises(ConfigError, match="no run of figure6; nothing to publish"):
        publish(folder, tmp_path / "out", ["figure6"])
