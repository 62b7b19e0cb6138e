import pytest

from results.paper.render.figures.style import house_style
from results.paper.render.figures.window import MAX_STAYS, draw_window
from results.paper.render.window_history import Stay
from tests.results.figures.looks import bars, points

STAYS = [Stay("attn 0", 0.0, 0.2), Stay("ffn 0", 0.1, None), Stay("attn 0", 0.3, None)]


def test_bars_are_stays_and_the_line_counts_blocks():
    with house_style():
        count, below = draw_window(STAYS, "measured", "measured, small").axes
    assert [p.get_x() for p in bars(below)] == [0.0, 0.1, 0.3]
    assert [p.get_width() for p in bars(below)] == pytest.approx([0.2, 0.2, 0.0])
    assert [y for _, y in points(count.lines[0])] == [1, 2, 1, 2]
    assert [t.get_text() for t in below.get_yticklabels()] == ["attn 0", "ffn 0", "attn 0"]
    assert count.get_title(loc="left") == "measured, small"


def test_long_trace_is_drawn_as_far_as_it_can_be_read():
    stays = [Stay(f"attn {i}", float(i), i + 1.0) for i in range(100)]
    with house_style():
        _, below = draw_window(stays, "measured", "").axes
    assert len(bars(below)) == MAX_STAYS


def test_retained_blocks_are_counted_and_leave_the_page_to_those_that_move():
    stays = [Stay("embed", 0.0, None), *STAYS]
    with house_style():
        count, below = draw_window(stays, "measured", "small").axes
    assert [y for _, y in points(count.lines[0])] == [2, 3, 2, 3]
    assert "embed" not in [t.get_text() for t in below.get_yticklabels()]
    assert count.get_title(loc="left") == "small; retained blocks: 1"
