import pytest

from results.paper.render.figures.style import house_style
from results.paper.render.figures.window import MAX_STAYS, Stay, draw_window, stays_of
from tests.results.figures.looks import bars, points

STEPS = [
    (0.0, ("attn 0",)),
    (0.1, ("attn 0", "ffn 0")),
    (0.2, ("ffn 0",)),
    (0.3, ("ffn 0", "attn 0")),
]


def test_steps_become_stays_and_a_block_may_come_back():
    assert stays_of(STEPS) == [
        Stay("attn 0", 0.0, 0.2),
        Stay("ffn 0", 0.1, None),
        Stay("attn 0", 0.3, None),
    ]


def test_bars_are_stays_and_the_line_counts_blocks():
    with house_style():
        count, below = draw_window(STEPS, "measured", "measured, small").axes
    assert [p.get_x() for p in bars(below)] == [0.0, 0.1, 0.3]
    assert [p.get_width() for p in bars(below)] == pytest.approx([0.2, 0.2, 0.0])
    assert [y for _, y in points(count.lines[0])] == [1, 2, 1, 2]
    assert [t.get_text() for t in below.get_yticklabels()] == ["attn 0", "ffn 0", "attn 0"]
    assert count.get_title(loc="left") == "measured, small"


def test_long_trace_is_drawn_as_far_as_it_can_be_read():
    steps = [(float(i), (f"attn {i}",)) for i in range(100)]
    with house_style():
        _, below = draw_window(steps, "measured", "").axes
    assert len(bars(below)) == MAX_STAYS


def test_retained_blocks_are_counted_and_leave_the_page_to_those_that_move():
    steps = [(t_s, ("embed", *moving)) for t_s, moving in STEPS]
    with house_style():
        count, below = draw_window(steps, "measured", "small").axes
    assert [y for _, y in points(count.lines[0])] == [2, 3, 2, 3]
    assert "embed" not in [t.get_text() for t in below.get_yticklabels()]
    assert count.get_title(loc="left") == "small; retained blocks: 1"
