"""The trace file has the form that Perfetto reads, and every span in it."""

import json
from itertools import pairwise

import pytest

from results.records.schema import RunRecord
from results.records.store import RunStore
from results.records.trace_file import main, trace_events
from tests.results.examples import make_repeat, make_traced, spans
from tpi.errors import ConfigError

ROWS = [["compute", 20, 26, "attn.0"], ["load", 10, 30, "ffn.0"], ["compute", 30, 31, ""]]


def traced(**changes):
    return make_traced(spans(0, ROWS), spans(1, [["wait", 0, 8, "attn.0"]]), **changes)


def assert_is_trace(body):
    """The rules of the format that a viewer relies on (Trace Event Format, JSON object form)."""
    assert isinstance(body["traceEvents"], list)
    assert body["displayTimeUnit"] in ("ms", "ns")
    for event in body["traceEvents"]:
        assert event["ph"] in ("X", "M", "i")
        assert isinstance(event["name"], str)
        assert event["name"]
        assert type(event["pid"]) is int
        assert type(event["tid"]) is int
        if event["ph"] == "M":
            assert event["name"] in ("process_name", "thread_name")
            assert event["args"]["name"]
        else:
            assert isinstance(event["ts"], float)
        if event["ph"] == "X":
            assert event["dur"] >= 0
        if event["ph"] == "i":
            assert event["s"] in ("g", "p", "t")
    # Bars of one thread may nest, but never cross.
    threads = {(e["pid"], e["tid"]) for e in body["traceEvents"] if e["ph"] == "X"}
    for thread in threads:
        bars = [e for e in body["traceEvents"] if e["ph"] == "X" and (e["pid"], e["tid"]) == thread]
        edges = sorted((e["ts"], e["ts"] + e["dur"]) for e in bars)
        assert all(a[1] <= b[0] + 1e-6 for a, b in pairwise(edges))


def test_a_process_for_each_device_and_a_thread_for_each_kind():
    events = trace_events(traced(), "tpi")
    assert_is_trace({"traceEvents": events, "displayTimeUnit": "ms"})
    named = {(e["pid"], e["tid"], e["name"]): e["args"] for e in events if e["ph"] == "M"}
    assert named == {
        (0, 0, "process_name"): {"name": "tpi rank 0"},
        (0, 0, "thread_name"): {"name": "compute"},
        (0, 1, "thread_name"): {"name": "load"},
        (1, 0, "process_name"): {"name": "tpi rank 1"},
        (1, 0, "thread_name"): {"name": "wait"},
    }


def test_every_span_is_a_bar_in_undilated_microseconds():
    events = trace_events(traced(dilation=2.0))
    bars = [e for e in events if e["ph"] == "X"]
    keys = {tuple(e[key] for key in ("pid", "cat", "name", "ts", "dur")) for e in bars}
    expected = {
        (0, "compute", "attn.0", 10_000, 3_000), (0, "load", "ffn.0", 5_000, 10_000),
        (0, "compute", "compute", 15_000, 500), (1, "wait", "attn.0", 0, 4_000),
    }  # fmt: skip
    assert keys == expected


def test_tokens_are_marked():
    marks = [(e["name"], e["ts"]) for e in trace_events(traced()) if e["ph"] == "i"]
    assert marks == [("token 1", 300_000), ("token 2", 400_000), ("token 3", 500_000)]


def test_run_without_spans_is_refused():
    with pytest.raises(ConfigError, match="repeat 0 has no spans; run it again with trace=true"):
        trace_events(make_repeat())


@pytest.fixture
def record(tmp_path):
    """The folder of a run with one repeat that was traced and one that was not."""
    store = RunStore(tmp_path)
    empty = RunRecord("tpi-0123456789abcdef", "tpi", "interrupted", "no repeat has ended yet")
    one = store.append(store.write(empty), traced())
    return store.folder(store.append(one, make_repeat(1)).run_id)


def test_command_writes_the_file(record, tmp_path, capsys):
    out = tmp_path / "trace.json"
    assert main([str(record), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}: spans of tpi-0123456789abcdef, repeat 0\n"
    body = json.loads(out.read_text())
    assert_is_trace(body)
    assert sum(e["ph"] == "X" for e in body["traceEvents"]) == 4
    assert body["otherData"] == {"run_id": "tpi-0123456789abcdef", "repeat": 0, "is_cut": False}


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (["--repeat", "1"], "repeat 1 has no spans; run it again with trace=true"),
        (["--repeat", "2"], "--repeat: got 2,"),
        (["--out", "/no/such/folder/x"], "cannot write /no/such/folder/x"),
    ],
)
def test_command_says_in_one_line_what_is_wrong(record, tmp_path, capsys, argv, reason):
    out = ["--out", str(tmp_path / "t.json")]
    assert main([str(record), *out, *argv]) != 0
    said = capsys.readouterr().err
    assert said.startswith("trace: ")
    assert reason in said
    assert said.count("\n") == 1
    assert not (tmp_path / "t.json").exists()


def test_folder_without_a_record_is_refused(tmp_path, capsys):
    assert main([str(tmp_path)]) != 0
    assert "no run record, expected a folder with run.json" in capsys.readouterr().err
