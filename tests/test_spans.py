"""Rows of spans: what fits an event, and what a `spans` event refuses."""

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpi.program.events import MAX_LINE_BYTES, EventError, EventWriter, parse_event
from tpi.trace import MAX_ROWS, SPAN_NAMES, rows_by_line

MAX_NS = (1 << 63) - 1
stamps = st.integers(0, MAX_NS)
labels = st.from_regex(r"[A-Za-z0-9_.-]{0,32}", fullmatch=True)
rows = st.builds(
    lambda name, a, b, label: (name, min(a, b), max(a, b), label),
    st.sampled_from(SPAN_NAMES), stamps, stamps, labels,
)  # fmt: skip


def rows_in(event):
    return event.fields["spans"]


def written(given_rows, **more):
    """The lines that are written of these rows."""
    read_fd, write_fd = os.pipe()
    with os.fdopen(read_fd, "rb") as reader:
        with os.fdopen(write_fd, "wb"):
            EventWriter(write_fd).spans("r0", 1, given_rows, **more)
        return reader.read().splitlines()


@given(st.lists(rows, max_size=20))
def test_rows_written_are_read_again(some):
    events = [parse_event(line) for line in written(some)]
    assert [e.name for e in events] == ["spans"] * (1 if some else 0)
    assert [tuple(row) for e in events for row in rows_in(e)] == some
    assert all(e.fields["rank"] == 1 and e.request_id == "r0" for e in events)


def test_longest_rows_fit_a_line():
    row = (SPAN_NAMES[1], MAX_NS, MAX_NS, "x" * 32)
    (some,) = rows_by_line([row] * MAX_ROWS)
    line = json.dumps(
        {"event": "spans", "t_ns": MAX_NS, "id": "r" * 64, "rank": 1023, "spans": some}
    )
    assert len(line) < MAX_LINE_BYTES
    assert parse_event(line).fields["spans"] == [[*row]] * MAX_ROWS


def test_many_rows_take_several_lines_in_order():
    many = [("compute", number, number + 1, "") for number in range(2 * MAX_ROWS + 1)]
    assert [len(some) for some in rows_by_line(many)] == [MAX_ROWS, MAX_ROWS, 1]
    assert [row for some in rows_by_line(many) for row in some] == many


def test_what_was_left_out_is_said():
    *_, last = [parse_event(line) for line in written([("load", 1, 2, "attn.0")], cut=True)]
    assert (last.fields["cut"], last.fields["spans"]) == (True, [])


@pytest.mark.parametrize(
    "spans",
    [
        None, {}, "x", [1], [["compute", 1, 2]], [["compute", 1, 2, "", 3]],
        [["embed", 1, 2, ""]], [["compute", 2, 1, ""]], [["compute", -1, 2, ""]],
        [["compute", 1.5, 2, ""]], [["compute", True, 2, ""]], [["compute", 1, 1 << 63, ""]],
        [["compute", 1, 2, None]], [["compute", 1, 2, "x" * 33]], [["compute", 1, 2, "\n"]],
        [["compute", 1, 2, "é"]],
        [[["compute"], 1, 2, ""]], [["compute", 1, 2, ""]] * (MAX_ROWS + 1),
    ],
    ids=lambda spans: repr(spans)[:40],
)  # fmt: skip
def test_malformed_spans_are_a_named_error(spans):
    line = json.dumps({"event": "spans", "t_ns": 1, "id": "r0", "rank": 0, "spans": spans})
    with pytest.raises(EventError, match="event spans: spans") as caught:
        parse_event(line)
    assert len(str(caught.value)) < 200
