import errno
import os
from dataclasses import replace

import pytest

from results.records.hashing import make_run_id, split_run_id
from results.records.schema import Check, RecordError, RunRecord
from results.records.store import RunStore
from tests.results.examples import make_repeat
from tpi.errors import ResourceError

BASE = make_run_id("tpi", {"devices": 2})
START = RunRecord(run_id=BASE, system="tpi", status="ok", check=Check("exact", True))


@pytest.fixture
def store(tmp_path):
    return RunStore(tmp_path / "runs")


def files(store: RunStore) -> list[str]:
    return sorted(p.name for p in store.folder(BASE).iterdir())


def test_repeats_are_appended_and_read_back(store):
    record = store.append(START, make_repeat(0, gap_ms=100))
    record = store.append(record, make_repeat(1, gap_ms=140))
    assert store.latest(BASE) == record
    assert record.status == "ok"
    assert record.tokens == (7, 8, 9)
    assert record.metrics.token_latency_s.median == pytest.approx(0.12)
    assert record.metrics.token_latency_s.n == record.num_ok == 2
    assert store.repeats(record) == [make_repeat(0, gap_ms=100), make_repeat(1, gap_ms=140)]
    assert files(store) == [
        "run.json",
        "samples-000.jsonl",
        "samples-001.jsonl",
    ]


def test_nothing_is_there_at_first(store):
    assert store.latest(BASE) is None
    assert store.next_id(BASE) == BASE
    assert store.scan() == ([], [])


def test_finished_means_enough_good_repeats_or_a_failure(store):
    record = store.append(START, make_repeat())
    assert record.is_finished(1)
    assert not record.is_finished(2)
    assert not replace(record, status="interrupted").is_finished(2)
    assert replace(record, status="oom").is_finished(2)


def test_what_is_invalid_is_not_a_result_but_a_wrong_output_is(store):
    record = replace(store.append(START, make_repeat()), status="invalid", metrics=None)
    assert not replace(record, check=Check("exact", None, detail="died")).is_finished(1)
    assert not replace(record, reason="emulation: a link is too slow").is_finished(1)
    assert replace(record, status="wrong_output").is_finished(1)


def test_failed_repeat_fails_the_run_and_is_not_averaged(store):
    record = store.append(START, make_repeat(0))
    record = store.append(record, make_repeat(1, status="crashed"))
    record = store.append(record, make_repeat(2))
    assert (record.status, record.reason, record.metrics) == ("crashed", "rank 1: exit 9", None)
    assert [s.status for s in record.samples] == ["ok", "crashed", "ok"]


def test_interrupted_run_goes_on_where_it_stopped(store):
    record = store.append(START, make_repeat(0))
    store.write(replace(record, status="interrupted", reason="by the user"))
    again = store.latest(BASE)
    assert again.metrics is not None
    record = store.append(again, make_repeat(1))
    assert (record.status, record.reason, record.num_ok) == ("ok", "", 2)


def test_repeat_out_of_order_is_refused(store):
    with pytest.raises(RecordError, match="repeat 1, expected 0"):
        store.append(START, make_repeat(1))


def test_measuring_again_keeps_both_and_the_latest_wins(store):
    store.append(START, make_repeat())
    for expected in (f"{BASE}-2", f"{BASE}-3"):
        run_id = store.next_id(BASE)
        assert run_id == expected
        store.append(replace(START, run_id=run_id), make_repeat())
    for number in range(4, 12):
        store.append(replace(START, run_id=f"{BASE}-{number}"), make_repeat())
    assert store.latest(BASE).run_id == f"{BASE}-11"
    assert [r.run_id for r in store.scan()[0]] == [f"{BASE}-11"]
    assert store.read(BASE).run_id == BASE


def test_changed_byte_in_samples_is_noticed(store):
    record = store.append(START, make_repeat())
    path = store.folder(BASE) / record.samples[0].file
    path.write_bytes(path.read_bytes().replace(b"7", b"6", 1))
    with pytest.raises(RecordError, match=r"samples-000\.jsonl: changed after it was written"):
        store.latest(BASE)


def test_missing_samples_are_named(store):
    record = store.append(START, make_repeat())
    (store.folder(BASE) / record.samples[0].file).unlink()
    with pytest.raises(RecordError, match=r"samples-000\.jsonl: .*No such file"):
        store.latest(BASE)


def test_record_in_another_folder_is_refused(store, tmp_path):
    store.append(START, make_repeat())
    store.folder(BASE).rename(store.folder(f"{BASE}-2"))
    with pytest.raises(RecordError, match=f"is of run {BASE}"):
        store.latest(BASE)


def test_samples_that_no_record_lists_are_written_again(store):
    record = store.append(START, make_repeat(0))
    (store.folder(BASE) / "samples-001.jsonl").write_text("half a li")
    record = store.append(record, make_repeat(1))
    assert store.latest(BASE) == record


def test_one_unusable_record_does_not_hide_the_others(store):
    other = make_run_id("transformers", {})
    store.append(START, make_repeat())
    store.append(replace(START, run_id=other, system="transformers"), make_repeat())
    (store.folder(BASE) / "run.json").write_text("{")
    records, problems = store.scan()
    assert [r.system for r in records] == ["transformers"]
    assert "half written" in str(problems[0])


@pytest.mark.parametrize("name", ["run.json", "samples-000.jsonl"])
def test_what_would_make_us_wait_is_refused(store, name):
    store.append(START, make_repeat())
    path = store.folder(BASE) / name
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(RecordError, match=f"{name}: expected a regular file"):
        store.read(BASE)


def test_foreign_folders_are_left_alone(store, tmp_path):
    (tmp_path / "runs" / "notes").mkdir(parents=True)
    (tmp_path / "runs" / "notes" / "run.json").write_text("{}")
    assert store.scan() == ([], [])


@pytest.mark.parametrize("failing", ["fsync", "write"])
def test_full_disk_leaves_what_was_there(store, monkeypatch, failing):
    record = store.append(START, make_repeat(0))
    before = files(store)

    def fail(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        if failing == "fsync":
            patch.setattr(os, "fsync", fail)
        else:
            patch.setattr("results.records.store.write_atomic", fail)
        with pytest.raises(ResourceError, match=r"cannot write .*No space left") as caught:
            store.append(record, make_repeat(1))
    assert caught.value.exit_status == 15
    assert files(store) == before
    assert store.latest(BASE) == record


def test_run_id_changes_with_any_value_and_not_with_order():
    first = make_run_id("tpi", {"a": 1, "b": {"c": 2}})
    assert first == make_run_id("tpi", {"b": {"c": 2}, "a": 1})
    assert first != make_run_id("tpi", {"a": 1, "b": {"c": 3}})
    assert first.startswith("tpi-")


def test_run_ids_are_split_into_base_and_attempt():
    assert split_run_id(f"{BASE}-{'9' * 5000}") is None
    assert split_run_id(BASE) == (BASE, 1)
    assert split_run_id(f"{BASE}-12") == (BASE, 12)
    assert split_run_id("notes") is None
