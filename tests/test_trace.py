"""Sums, kept spans and their rows."""

import threading

import pytest

import tpi.trace
from tpi.trace import SPAN_NAMES, Span, Tracer, rows_of


def test_sums_are_kept_and_spans_only_if_asked():
    for keep in (False, True):
        tracer = Tracer(keep=keep)
        tracer.add("compute", 10, 30, "attn", 3)
        tracer.add("compute", 40, 45)
        assert tracer.totals_ns["compute"] == 25
        assert [s.label for s in tracer.spans] == (["attn.3", ""] if keep else [])


def test_body_that_raises_is_counted():
    tracer = Tracer(keep=True)
    with pytest.raises(KeyError), tracer.span("compute", "ffn", 2):
        raise KeyError
    (span,) = tracer.spans
    assert (span.label, span.end_ns - span.start_ns) == ("ffn.2", tracer.totals_ns["compute"])


def test_spans_taken_are_forgotten():
    tracer = Tracer(keep=True)
    tracer.add("compute", 1, 2)
    assert tracer.take() == [Span("compute", 1, 2, "", 0)]
    assert tracer.take() == []
    assert tracer.totals_ns["compute"] == 1


def test_spans_beyond_the_limit_are_left_out_and_that_is_known(monkeypatch):
    monkeypatch.setattr(tpi.trace, "MAX_SPANS", 2)
    tracer = Tracer(keep=True)
    seen = []
    for at_ns in range(3):
        tracer.add("compute", at_ns, at_ns + 1)
        seen.append(tracer.is_full)
    assert seen == [False, False, True]
    assert [s.start_ns for s in tracer.take()] == [0, 1]
    assert tracer == Tracer(keep=True, totals_ns=tracer.totals_ns)
    assert tracer.totals_ns["compute"] == 3


def test_nothing_is_lost_or_told_twice_while_a_second_thread_adds():
    tracer, taken = Tracer(keep=True), []

    def load():
        for number in range(5000):
            tracer.add("load_block", number, number + 1)

    thread = threading.Thread(target=load)
    thread.start()
    for number in range(5000):
        tracer.add("compute", number, number + 1)
        if number % 50 == 0:
            taken += tracer.take()
    thread.join()
    taken += tracer.take()
    for name in ("compute", "load_block"):
        assert [s.start_ns for s in taken if s.name == name] == list(range(5000))
        assert tracer.totals_ns[name] == 5000


def test_rows_have_the_names_of_the_contract_and_leave_out_the_rest():
    names = ("compute", "allreduce", "load_block", "wait_weights", "embed", "broadcast")
    rows = list(rows_of(Span(name, 1, 2, "attn", 0) for name in names))
    assert [row[0] for row in rows] == list(SPAN_NAMES)
    assert rows[2] == ("load", 1, 2, "attn.0")
