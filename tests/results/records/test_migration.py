"""Records of version 1: their notes become facts that read as they did, their hosts are known."""

import json
from pathlib import Path

import pytest

from results.records.codec import decode_record, encode_record
from results.records.migration import calibrated_host, note_of
from results.records.notes import (
    Contended,
    Cut,
    DistinctLayers,
    LinkFaults,
    LinkFaultsFailed,
    OwnForm,
    OwnSetting,
    Said,
)
from results.records.schema import CalibratedHost

PUBLISHED = Path(__file__).parents[3] / "results" / "published"
NOTES = {
    "repeats 5 -> 2, to fit max_minutes=30": Cut("repeats", 5, 2, 30.0),
    "new tokens 32 -> 3, to fit max_minutes=0.5": Cut("new tokens", 32, 3, 0.5),
    "distinct_layers: 4 of 80": DistinctLayers(4, 80),
    "dtype: bfloat16, of the run: float32": OwnSetting("dtype", "bfloat16", "float32"),
    "threads: 2, of the run: 1": OwnSetting("threads", 2, 1),
    "GGUF file of q4_0; its tokens are checked against the file's own numbers": OwnForm(
        "GGUF file of q4_0"
    ),
    "contended: another harness ran on this host at the same time": Contended(),
    "link faults were made during the measured request: 2 changes": LinkFaults(2),
    "link faults that could not be made: 1, links: no port 3": LinkFaultsFailed(
        1, "links: no port 3"
    ),
    "no O_DIRECT on this file system": Said("no O_DIRECT on this file system"),
}


@pytest.mark.parametrize(("text", "note"), NOTES.items())
def test_a_line_becomes_the_fact_that_reads_the_same(text, note):
    assert note_of(text) == note
    assert str(note) == text


@pytest.mark.parametrize(
    ("words", "host"),
    [
        ("AMD EPYC, 2 cores at once, 2026-11-29", ("AMD EPYC", 2)),
        ("AMD EPYC (Zen 4), 2 cores, one thread", ("AMD EPYC (Zen 4)", 2)),
        ("Xeon, 3rd, 16 cores", ("Xeon, 3rd", 16)),
        ("a machine", ("", 0)),
    ],
)
def test_processor_and_cores_of_a_calibration_are_known(words, host):
    assert calibrated_host(words) == CalibratedHost(words, *host)


def test_published_records_are_read_and_written_anew_without_loss():
    paths = sorted(PUBLISHED.rglob("run.json"))
    assert len(paths) > 100
    for path in paths:
        raw = json.loads(path.read_text())
        record = decode_record(path.read_bytes(), "x")
        assert list(map(str, record.notes)) == raw["notes"]
        assert record.config.options == {
            name: tuple(value) if name == "shares" and value else value
            for name, value in raw["config"]["systems"][record.system].items()
        }
        again = encode_record(record)
        assert json.loads(again)["schema_version"] == 2
        assert decode_record(again, "x") == record
