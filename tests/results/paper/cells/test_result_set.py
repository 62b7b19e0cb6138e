import dataclasses
import json

import pytest
from msgspec.structs import replace

from results.paper.cell import Cell, Place
from results.paper.cells.result_set import read_result_set
from results.paper.index import Entry, Index, write_index
from results.records.codec import decode_record
from results.records.hashing import make_run_id
from results.records.schema import Check, RecordError, RunRecord
from results.records.store import RunStore
from tests.results.examples import MIB, as_calibration, as_config, make_repeat
from tpi.errors import ConfigError

DOCKER = {"testbed": {"name": "klonet", "backend": "docker"}}
PLACE = Place("table1", "llama2-3b", "on", "token_latency_s")


def make_run(folder, name="on", backend="docker", config=None, **changes):
    run_id = make_run_id("tpi", {"name": name, "backend": backend})
    record = RunRecord(
        run_id=run_id,
        system="tpi",
        status="ok",
        check=Check("exact", True),
        config=as_config({"testbed": {"backend": backend}, **(config or {})}),
        calibration=as_calibration({"dilation": {"factor": 8.0}} if backend == "docker" else {}),
        **changes,
    )
    return RunStore(folder).append(record, make_repeat())


def entry(record=None, column="on", **changes):
    run_id = record.run_id if record else ""
    return Entry("table1", "llama2-3b", column, "tpi", (), run_id, **changes)


def test_a_run_gives_its_row_and_column_every_metric(tmp_path):
    write_index(tmp_path, Index("small", (entry(make_run(tmp_path)),)))
    book = read_result_set(tmp_path)
    [cell] = book.of(PLACE)
    assert (cell.evidence, cell.scale, cell.backend, cell.dilation) == (
        "measured", "small", "docker", 8.0,
    )  # fmt: skip
    assert cell.value == pytest.approx(0.1)
    assert (cell.n, cell.low) == (1, None)
    metrics = {c.place.metric: c.value or 0.0 for c in book.exhibit("table1")}
    assert metrics["peak_memory_bytes"] == 300 * MIB
    assert metrics["first_token_s"] == pytest.approx(metrics["ttft_s"] + 1.9)
    assert metrics["compute_share"] == pytest.approx(0.4)


def test_kinds_of_evidence_stand_side_by_side(tmp_path):
    runs = [make_run(tmp_path), make_run(tmp_path, backend="sim")]
    write_index(tmp_path, Index("small", tuple(entry(run) for run in runs)))
    paper = Cell(PLACE, "reported", 1.9, source="Table 1")
    book = read_result_set(tmp_path, [paper])
    assert [c.evidence for c in book.of(PLACE)] == ["reported", "measured", "simulated"]
    assert book.of(PLACE, "reported") == (paper,)


def test_every_cell_without_a_number_has_its_word(tmp_path):
    oom = make_run(tmp_path, "oom")
    RunStore(tmp_path).write(replace(oom, status="oom", reason="rank 0: killed", metrics=None))
    index = Index(
        "small",
        (
            entry(oom, "oom"),
            entry(None, "waiting"),
            entry(None, "refused", refusal="needs 257 GiB of disk, 80 free"),
        ),
    )
    write_index(tmp_path, index)
    cells = {c.place.column: c for c in read_result_set(tmp_path).exhibit("table1")}
    assert {name: c.missing_reason for name, c in cells.items()} == {
        "oom": "oom", "waiting": "not run", "refused": "infeasible",
    }  # fmt: skip
    assert "rank 0: killed" in cells["oom"].detail
    assert cells["refused"].evidence == "infeasible"
    assert "257 GiB" in cells["refused"].detail


def test_a_failure_is_not_called_infeasible(tmp_path):
    write_index(tmp_path, Index("small", (entry(failure="OSError: No space left"),)))
    [cell] = read_result_set(tmp_path).of(PLACE)
    assert (cell.missing_reason, cell.evidence, cell.detail) == (
        "failed", "measured", "OSError: No space left",
    )  # fmt: skip


@pytest.mark.parametrize("changes", [{}, {"refusal": "no"}, {"failure": "no"}, "unusable"])
def test_what_was_to_be_simulated_is_never_filed_as_measured(tmp_path, changes):
    sim = Entry("table1", "llama2-3b", "on", "tpi", ("testbed=klonet", "testbed.backend=sim"))
    if changes == "unusable":
        changes = {"run_id": make_run_id("tpi", {})}  # there is none
    write_index(tmp_path, Index("small", (replace(sim, **changes),)))
    [cell] = read_result_set(tmp_path).of(PLACE)
    assert cell.backend == "sim"
    assert cell.evidence == ("infeasible" if "refusal" in changes else "simulated")


def test_a_record_of_another_system_is_refused_by_name(tmp_path):
    record = make_run(tmp_path)
    wrong = replace(entry(record), system="galaxy", row="yi-34b")
    write_index(tmp_path, Index("small", (entry(record), wrong)))
    book = read_result_set(tmp_path)
    assert book.of(PLACE)[0].missing_reason == ""
    [cell] = book.of(dataclasses.replace(PLACE, row="yi-34b"))
    [problem] = book.problems
    assert (cell.missing_reason, cell.detail) == ("unusable", problem)
    assert f"{record.run_id} is of tpi, expected galaxy" in problem


@pytest.mark.parametrize(
    ("override", "is_other"),
    [
        ("devices=2", True), ("devices=8.0", False), ("window=4", True), ("window=2", False),
        ("workload.new_tokens=5", True), ("device.cores=6", False),
        ("dtype=bfloat16", True), ("dtype=float32", False),
        ("repeats=9", False), ("testbed=klonet", False), ("device.memory=8GiB", False),
    ],
)  # fmt: skip
def test_a_record_of_another_setting_is_refused_by_name(tmp_path, override, is_other):
    config = {
        "devices": 8, "repeats": 2, "dtype": "float32", "options": {"window": 2},
        "workload": {"new_tokens": 4}, "device": {"memory": 8 << 30, "cores": 8.0},
    }  # fmt: skip
    record = make_run(tmp_path, config=config)
    write_index(tmp_path, Index("small", (replace(entry(record), overrides=(override,)),)))
    problems = read_result_set(tmp_path).problems
    assert len(problems) == is_other
    assert not problems or f"expected {override}" in problems[0]


def test_a_run_that_was_stopped_before_its_first_repeat_ended_was_not_run(tmp_path):
    record = make_run(tmp_path)
    stopped = replace(record, status="interrupted", reason="by the user", metrics=None, samples=())
    RunStore(tmp_path).write(stopped)
    write_index(tmp_path, Index("small", (entry(stopped),)))
    [cell] = read_result_set(tmp_path).of(PLACE)
    assert (cell.missing_reason, cell.detail) == ("not run", "interrupted: by the user")


def _change_a_byte(path):
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"median": 0.1', b'"median": 0.2', 1))


def _make_older(path):
    raw = json.loads(path.read_text())
    path.write_text(json.dumps(raw | {"schema_version": 0}))


def _cut_short(path):
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_change_a_byte, "was changed after it was written"),
        (_make_older, "schema version 0"),
        (_cut_short, "half written"),
        (lambda path: path.unlink(), "No such file"),
    ],
)
def test_a_record_that_cannot_be_used_is_named_and_the_rest_is_read(tmp_path, spoil, words):
    bad, good = make_run(tmp_path, "bad"), make_run(tmp_path, "good")
    write_index(tmp_path, Index("small", (entry(bad, "bad"), entry(good, "good"))))
    spoil(tmp_path / bad.run_id / "run.json")
    book = read_result_set(tmp_path)
    cells = {c.place.column: c for c in book.exhibit("table1")}
    assert (cells["bad"].missing_reason, cells["good"].missing_reason) == ("unusable", "")
    [problem] = book.problems
    assert bad.run_id in problem
    assert words in problem
    assert cells["bad"].detail == problem


def test_a_samples_file_with_one_byte_changed_is_named(tmp_path):
    record = make_run(tmp_path)
    write_index(tmp_path, Index("small", (entry(record),)))
    samples = tmp_path / record.run_id / "samples-000.jsonl"
    samples.write_bytes(samples.read_bytes().replace(b"900", b"901", 1))
    [problem] = read_result_set(tmp_path).problems
    assert "samples-000.jsonl: changed after it was written" in problem


@pytest.mark.parametrize(
    "changes",
    [
        {"calibration": {"dilation": {"factor": "8"}}},
        {"calibration": {"links": [{"delay_s": "1"}]}},
        {"calibration": {"limits": [{"memory": "8 GiB"}]}},
        {"config": {"testbed": "klonet"}},
        {"config": {"options": {"shares": [1, "2"]}}},
    ],
)
def test_wrong_types_within_are_refused_even_with_a_right_digest(tmp_path, changes):
    record = make_run(tmp_path)
    with pytest.raises(
        RecordError, match=r"record \S+: (calibration|config)\S* (must be|is missing)"
    ):
        RunStore(tmp_path).write(replace(record, **changes))


def test_published_records_are_read(request):
    folder = request.config.rootpath / "results" / "published"
    for path in folder.glob("*/*/run.json"):
        decode_record(path.read_bytes(), str(path))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Place("table9", "a", "b", "ttft_s"), "exhibit"),
        (lambda: Place("table1", "a", "b", "speed"), "metric"),
        (lambda: Cell(PLACE, "guessed", 1.0), "evidence"),
        (lambda: Cell(PLACE, "measured", missing_reason="maybe"), "missing_reason"),
        (lambda: Cell(PLACE, "measured"), "neither a value nor a reason"),
    ],
)
def test_cells_that_cannot_be_are_refused(make, words):
    with pytest.raises(ConfigError, match=words):
        make()
