"""Spans of a repeat in the request's own seconds."""

import pytest
from msgspec.structs import replace

from results.records.codec import decode_repeat, encode_repeat
from results.records.schema import RecordError
from results.records.spans import RankSpan, is_cut, spans_of
from tests.results.examples import make_repeat, make_traced, spans


def test_spans_come_in_order_and_in_the_devices_own_seconds():
    traced = make_traced(
        spans(1, [["load", 10, 30, "ffn.0"]]),
        spans(0, [["compute", 20, 26, "attn.0"], ["allreduce", 26, 28, ""]]),
        spans(0, [["wait", 0, 8, "attn.0"]]),
        dilation=2.0,
    )
    assert spans_of(traced) == [
        RankSpan(0, "wait", "attn.0", 0.0, 0.004),
        RankSpan(1, "load", "ffn.0", 0.005, 0.015),
        RankSpan(0, "compute", "attn.0", 0.01, 0.013),
        RankSpan(0, "allreduce", "", 0.013, 0.014),
    ]


def test_what_ended_before_the_request_is_left_out():
    rows = [["load", -9, -1, "attn.0"], ["load", -1, 2, "ffn.0"]]
    (span,) = spans_of(make_traced(spans(0, rows), spans(0, [["load", 1, 2, ""]], "w")))
    assert (span.label, span.start_s, span.end_s) == ("ffn.0", -0.001, 0.002)


def test_run_that_was_not_traced_has_none():
    assert spans_of(make_repeat()) == []
    assert not is_cut(make_repeat())


def test_what_was_not_kept_is_known():
    assert is_cut(make_traced(spans(1, [], cut=True)))
    assert not is_cut(make_traced(spans(1, [["load", 1, 2, ""]])))


def test_spans_without_their_request_are_refused():
    traced = make_traced(spans(0, [["compute", 1, 2, ""]]))
    events = tuple(e for e in traced.events if e.name != "request")
    with pytest.raises(RecordError, match="repeat 0: spans without a request 'm'"):
        spans_of(replace(traced, events=events))


def test_samples_file_keeps_them():
    traced = make_traced(spans(0, [["compute", 1, 2, "head.0"]] * 500), spans(1, [], cut=True))
    assert decode_repeat(encode_repeat(traced), "x") == traced


def test_samples_file_with_a_span_that_is_none_is_refused():
    data = encode_repeat(make_traced(spans(0, [["compute", 1, 2, "head.0"]])))
    with pytest.raises(RecordError, match="x: event spans: spans"):
        decode_repeat(data.replace(b'"compute"', b'"computes"'), "x")
