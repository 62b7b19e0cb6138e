"""Which blocks are in memory when, from hand-made spans."""

from results.paper.render.window_history import window_history
from tests.results.examples import make_repeat, make_traced, spans, steps_of
from tpi.program.events import Event


def history(rows, *more, rank=0):
    """Steps in milliseconds."""
    steps = steps_of(window_history(make_traced(spans(rank, rows), *more), rank))
    return [(round(t_s * 1e3, 6), labels) for t_s, labels in steps]


def test_window_of_two_over_two_passes():
    # attn.0 was loaded before the request, ffn.0 was being loaded when it began.
    rows = [
        ["load", -2, 3, "ffn.0"], ["compute", 1, 4, "attn.0"], ["load", 4.5, 6, "head.0"],
        ["wait", 5, 6, "ffn.0"], ["compute", 6, 8, "ffn.0"], ["load", 9, 10, "attn.0"],
        ["compute", 11, 12, "head.0"], ["load", 12, 13, "ffn.0"], ["compute", 14, 15, "attn.0"],
        ["load", 15, 16, "head.0"], ["compute", 17, 18, "ffn.0"], ["compute", 19, 20, "head.0"],
    ]  # fmt: skip
    assert history(rows) == [
        (-2, ("attn.0", "ffn.0")),
        (4, ("ffn.0",)),
        (4.5, ("ffn.0", "head.0")),
        (8, ("head.0",)),
        (9, ("head.0", "attn.0")),
        (12, ("attn.0", "ffn.0")),
        (15, ("ffn.0", "head.0")),
        (18, ("head.0",)),
        (20, ()),
    ]


def test_retained_block_never_leaves():
    rows = [
        ["compute", 0, 1, "attn.0"], ["load", 1, 2, "ffn.0"], ["compute", 2, 3, "ffn.0"],
        ["compute", 4, 5, "attn.0"], ["load", 5, 6, "ffn.0"], ["compute", 6, 7, "ffn.0"],
    ]  # fmt: skip
    assert history(rows) == [
        (0, ("attn.0",)),
        (1, ("attn.0", "ffn.0")),
        (3, ("attn.0",)),
        (5, ("attn.0", "ffn.0")),
        (7, ("attn.0",)),
    ]


def test_in_one_pass_ready_tells_retained_blocks_from_those_that_were_there():
    rows = [["compute", 0, 1, "attn.0"], ["load", 1, 2, "ffn.0"], ["compute", 2, 3, "ffn.0"]]
    assert history(rows)[-1] == (3, ())
    ready = Event("ready", 1, {"retained": 1}, 1)
    assert history(rows, ready, rank=1)[-1] == (3, ("attn.0",))


def test_in_one_pass_what_the_window_held_is_no_retained_block():
    rows = [
        ["compute", 0, 1, "attn.0"], ["compute", 1, 2, "ffn.0"], ["compute", 2, 3, "attn.1"],
        ["load", 1, 4, "ffn.1"], ["compute", 4, 5, "ffn.1"], ["compute", 5, 6, "attn.2"],
        ["load", 5, 9, "attn.0"],
    ]  # fmt: skip
    ready = Event("ready", 1, {"retained": 2}, 1)
    found = history(rows, ready, rank=1)
    # attn.2 lies behind the first block loaded, ffn.0 is an FFN block; attn.0, attn.1 were held.
    assert found[-1] == (5, ("attn.2", "ffn.0", "attn.0"))


def test_block_loaded_ahead_for_the_next_request_is_there_at_the_end():
    rows = [["load", 0, 1, "attn.0"], ["compute", 1, 2, "attn.0"], ["load", 3, 4, "attn.0"]]
    assert history(rows)[-2:] == [(2, ()), (3, ("attn.0",))]


def test_head_that_a_pass_skipped_goes_when_the_next_pass_begins():
    rows = [
        ["load", 0, 1, "attn.0"], ["compute", 1, 2, "attn.0"], ["load", 2, 3, "head.0"],
        ["load", 3, 4, "attn.0"], ["compute", 5, 6, "attn.0"], ["load", 6, 7, "head.0"],
        ["compute", 7, 8, "head.0"],
    ]  # fmt: skip
    assert history(rows) == [
        (0, ("attn.0",)),
        (2, ("head.0",)),
        (3, ("head.0", "attn.0")),
        (5, ("attn.0",)),
        (6, ("head.0",)),
        (8, ()),
    ]


def test_skipped_head_that_is_still_read_goes_for_the_load_that_needs_its_slot():
    rows = [
        ["compute", 0, 1, "attn.0"], ["load", 1, 5, "head.0"], ["compute", 1, 2, "ffn.0"],
        ["load", 5, 6, "attn.0"], ["load", 6, 7, "ffn.0"], ["compute", 7, 8, "attn.0"],
        ["compute", 8, 9, "ffn.0"], ["load", 8, 10, "head.0"], ["compute", 10, 11, "head.0"],
    ]  # fmt: skip
    ready = Event("ready", 1, {"window": 2, "retained": 0}, 1)
    found = history(rows, ready, rank=1)
    assert (6, ("attn.0", "ffn.0")) in found
    assert max(len(labels) for _, labels in found) == 2


def test_rank_that_streams_nothing_has_no_window():
    assert history([["compute", 0, 1, "attn.0"], ["compute", 2, 3, "attn.0"]]) == []
    assert history([["load", 0, 1, "attn.0"]], rank=1) != []
    assert window_history(make_traced(spans(1, [["load", 0, 1, "attn.0"]])), 0) == []
    assert window_history(make_repeat()) == []
