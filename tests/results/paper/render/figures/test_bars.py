from itertools import pairwise

from results.paper.render.figures.bars import draw_bars, panels_of
from results.paper.render.figures.style import evidence_key, house_style
from tests.results.books import GIB, book, cell
from tests.results.figures.looks import bars


def texts(figure):
    found = [t.get_text() for axes in figure.axes for t in axes.texts]
    return found + [t.get_text() for legend in figure.legends for t in legend.get_texts()]


FIGURE5 = (
    cell("figure5a 8 tpi token_latency_s", "reported", value=26.1),
    cell("figure5a 8 tpi token_latency_s", value=20.0, dilation=8.0, low=18.0, high=21.0, n=3),
    cell("figure5a 8 tpi token_latency_s", "simulated", value=22.0),
    cell("figure5a 4 tpi token_latency_s", missing_reason="oom"),
)


def test_each_cell_is_a_bar_of_its_height_or_its_word():
    with house_style():
        figure = draw_bars(book(*FIGURE5), "figure5a")
    (axes,) = figure.axes
    assert sorted(patch.get_height() for patch in bars(axes)) == [20.0, 22.0, 26.1]
    assert {"OOM", "not run", "not found", "d8"} <= set(texts(figure))
    assert [t.get_text() for t in axes.get_xticklabels()] == ["4", "6", "8"]
    assert axes.get_xlabel() == "devices"
    assert axes.get_ylabel() == "token latency (s)"


def test_kinds_of_evidence_are_filled_apart():
    plain = cell("figure5a 6 tpi token_latency_s", value=20.0)
    computed = cell("figure5a 6 tpi token_latency_s", "computed", value=20.0, source="ours")
    with house_style():
        (axes,) = draw_bars(book(*FIGURE5, plain, computed), "figure5a").axes
        looks = {(patch.get_facecolor(), patch.get_hatch()) for patch in bars(axes)}
    assert len(looks) == 5
    assert len({evidence_key(c) for c in (*FIGURE5[:3], plain, computed)}) == 5


def test_legend_names_the_evidence_that_is_there():
    with house_style():
        words = set(texts(draw_bars(book(*FIGURE5), "figure5a")))
    assert {"the paper", "measured, dilated (d)", "simulated"} <= words
    assert "measured" not in words


def test_bars_of_one_group_do_not_meet_the_next():
    (panel,) = panels_of(book(*FIGURE5), "figure5a")
    with house_style():
        (axes,) = draw_bars(book(*FIGURE5), "figure5a").axes
    edges = sorted((p.get_x(), p.get_x() + p.get_width()) for p in bars(axes))
    assert all(a[1] <= b[0] for a, b in pairwise(edges))
    assert all(start > 1.5 and end < 2.5 for start, end in edges)
    assert {bar.group for bar in panel.bars} == {0, 1, 2}


def test_figure6_groups_by_system_and_has_both_times():
    cells = [
        cell("figure6 llama2-3b tpi ttft_s", "reported", value=2.0),
        cell("figure6 llama2-3b standalone first_token_s", "reported", value=9.0),
        cell("figure6 llama2-70b mp token_latency_s", "reported", missing_reason="oom"),
    ]
    ttft, latency = panels_of(book(*cells), "figure6")
    assert (ttft.metric, latency.metric) == ("ttft_s", "token_latency_s")
    assert latency.groups == ("standalone", "mp", "galaxy", "tpi")
    assert ttft.groups == (
        "standalone", "standalone/with loading", "mp", "mp/with loading", "galaxy",
        "galaxy/with loading", "tpi",
    )  # fmt: skip
    assert ttft.series[0] == "llama2-3b"
    assert [bar.cell.value for bar in ttft.bars if bar.cell.value] == [9.0, 2.0]
    (oom,) = [bar for bar in latency.bars if bar.cell.missing_reason == "oom"]
    assert (oom.group, oom.series) == (1, 3)


def test_values_far_apart_get_a_logarithmic_axis():
    far = [
        cell("figure1c 1 tensor-parallel peak_memory_bytes", "reported", value=32 * GIB),
        cell("figure1c 1 tpi peak_memory_bytes", value=0.3 * GIB),
    ]
    with house_style():
        (axes,) = draw_bars(book(*far), "figure1c").axes
        assert axes.get_yscale() == "log"
        assert axes.get_ylim()[0] < 0.3
        (axes,) = draw_bars(book(far[0]), "figure1c").axes
        assert axes.get_yscale() == "linear"
    assert axes.get_ylabel() == "peak memory (GiB)"
