import json

import pytest
from msgspec.structs import replace

from results.records.codec import decode_record, decode_repeat, encode_record, encode_repeat
from results.records.measure import measure, summarize
from results.records.notes import DistinctLayers
from results.records.schema import Check, RecordError, RunRecord, SampleFile
from tests.results.examples import as_config, as_environment, make_repeat
from tpi.program.events import Event

RECORD = RunRecord(
    run_id="tpi-0123456789abcdef",
    system="tpi",
    status="ok",
    check=Check("exact", True, 1.0, None, "32 tokens"),
    config=as_config({"devices": 2}),
    environment=as_environment({"host": {"cores": 2}}),
    tokens=(7, 8, 9),
    metrics=summarize([measure(make_repeat())]),
    samples=(SampleFile("samples-000.jsonl", "ab", "ok"),),
    notes=(DistinctLayers(2, 32),),
)


def test_record_written_and_read_is_the_same():
    assert decode_record(encode_record(RECORD), "x") == RECORD


def test_repeat_written_and_read_is_the_same():
    repeat = make_repeat()
    assert decode_repeat(encode_repeat(repeat), "x") == repeat


def test_every_changed_byte_of_a_record_is_noticed():
    data = encode_record(RECORD)
    for position in range(0, len(data), 7):
        changed = data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]
        try:
            same = decode_record(changed, "x") == RECORD
        except RecordError:
            continue
        # Only white space between values may change without being noticed, or harming.
        assert same


@pytest.mark.parametrize("cut", [0, 1, 100, -1])
def test_half_written_record_is_refused(cut):
    with pytest.raises(RecordError, match="record x: not JSON, perhaps half written"):
        decode_record(encode_record(RECORD)[:cut], "record x")


def test_other_schema_version_is_refused_with_both_versions():
    raw = json.loads(encode_record(RECORD))
    raw["schema_version"] = 0
    with pytest.raises(RecordError, match="x: schema version 0, this program reads 2; measure"):
        decode_record(json.dumps(raw).encode(), "x")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"status": "fine"}, "status must be ok | oom"),
        ({"metrics": None}, "status ok without metrics"),
        ({"status": "crashed", "reason": "x"}, "a failure has no timing"),
        ({"status": "crashed", "metrics": None}, "status crashed without a reason"),
        ({"check": Check("exact", False)}, "check of the tokens failed"),
        ({"check": Check("close", True)}, "kind must be exact | bounded"),
        ({"check": Check("exact", True, 1.5)}, "check.agreement must be a number in 0..1"),
        ({"config": {"x": float("nan")}}, "record tpi-0123456789abcdef: Out of range float"),
        ({"config": {"x": object()}}, "Encoding objects of type object is unsupported"),
        ({"samples": (SampleFile("../x", "", "ok"),)}, "file must be a file name"),
        ({"tokens": (-1,)}, "tokens[0] must be an integer in 0.."),
    ],
)
def test_record_that_does_not_fit_is_refused_when_written(changes, message):
    with pytest.raises(RecordError) as caught:
        encode_record(replace(RECORD, **changes))
    assert message in str(caught.value)


def test_failed_run_needs_no_metrics():
    failed = replace(RECORD, status="infeasible", reason="needs 9 GiB of 4", metrics=None)
    assert decode_record(encode_record(failed), "x") == failed


@pytest.mark.parametrize("cut", [1, 40, 700])
def test_cut_samples_are_refused(cut):
    with pytest.raises(RecordError, match="samples x"):
        decode_repeat(encode_repeat(make_repeat())[:-cut], "samples x")


def test_samples_without_their_last_lines_are_refused():
    lines = encode_repeat(make_repeat()).splitlines(keepends=True)
    with pytest.raises(RecordError, match="is cut short"):
        decode_repeat(b"".join(lines[:-2]), "x")


def test_event_that_does_not_fit_is_refused_when_written():
    repeat = make_repeat(events=(Event("token", 1, {"id": "m"}, 0),))
    with pytest.raises(RecordError, match="event token: token"):
        encode_repeat(repeat)
