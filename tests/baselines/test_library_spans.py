"""Between what a library's clocks saw, a baseline computes."""

from hypothesis import given
from hypothesis import strategies as st

from baselines.library_program import request_spans
from tpi.trace import Span


def test_without_clocks_it_computes_from_token_to_token():
    spans = request_spans([], 10, [30, 45])
    assert spans == [Span("compute", 10, 30), Span("compute", 30, 45)]


def test_computing_belongs_to_the_block_whose_weights_came_last():
    seen = [
        Span("wait_weights", 2, 5, "head", 0),  # before the request
        Span("wait_weights", 10, 14, "attn", 0),
        Span("wait_weights", 20, 21, "ffn", 0),
        Span("wait_weights", 50, 60, "attn", 0),  # after its last token
    ]
    assert request_spans(seen, 10, [40]) == [
        seen[1],
        Span("compute", 14, 20, "attn", 0),
        seen[2],
        Span("compute", 21, 40, "ffn", 0),
    ]


segments = st.lists(st.tuples(st.booleans(), st.integers(1, 50)), max_size=30)


@given(segments, st.data())
def test_spans_fill_the_request_without_a_hole(parts, data):
    now_ns, seen, token_ns = 100, [], []
    for is_seen, length in [*parts, (False, 7)]:
        if is_seen:
            seen.append(Span("allreduce", now_ns, now_ns + length))
        elif data.draw(st.booleans()):
            token_ns.append(now_ns + length)
        now_ns += length
    token_ns = [*token_ns[:-1], now_ns]
    spans = request_spans(seen, 100, token_ns)
    edges = [100, *(edge for span in spans for edge in (span.start_ns, span.end_ns)), now_ns]
    assert edges[::2] == edges[1::2]  # each begins where the one before has ended
    assert [s for s in spans if s.name == "allreduce"] == seen
    assert {*token_ns} <= {s.end_ns for s in spans}
