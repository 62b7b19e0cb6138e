from results.paper.render.figures.allreduce import draw_allreduce, is_hops, is_of
from results.paper.render.figures.style import house_style
from tests.results.books import book, cell
from tests.results.figures.looks import points


def at(ms, evidence="measured", algorithm="star", **fields):
    return cell(f"figure3 {ms} {algorithm} allreduce_s", evidence, **fields)


CELLS = [
    at(1, value=0.0085, low=0.008, high=0.009, dilation=8.0, source="4 bytes"),
    at(1, value=0.02, source="32 KiB"),
    *(at(ms, "computed", value=0.008 * ms, source="published: hops") for ms in (0, 10)),
    *(at(ms, "computed", value=0.0081 * ms, source="ours") for ms in (0, 10)),
    *(at(ms, "computed", value=0.012 + 0.008 * ms, source="ours: 32 KiB") for ms in (0, 10)),
]


def test_payloads_have_their_panels_and_hops_are_in_both():
    assert [is_of(c, "4 bytes") for c in CELLS[:3]] == [True, False, True]
    assert [is_of(c, "32 KiB") for c in CELLS[:3]] == [False, True, True]
    assert [is_hops(c) for c in CELLS] == [False, False, True, True, False, False, False, False]


def test_points_and_lines_stand_at_their_latency_in_ms():
    with house_style():
        small, large, short = draw_allreduce(book(*CELLS), "figure3").axes
    drawn = [points(line) for line in small.lines if line.get_marker() == "o"]
    assert drawn == [[[1.0, 8.5]]]
    assert [[1.0, 20.0]] in [points(line) for line in large.lines]
    dashed = [line for line in small.lines if line.get_linestyle() == "--"]
    assert [points(line) for line in dashed] == [[[0.0, 0.0], [10.0, 80.0]]]
    assert (small.get_ylabel(), small.get_xlabel()) == (
        "allreduce latency (ms)",
        "latency of one link (ms)",
    )
    assert short.get_xlim()[1] < 3


def test_without_a_study_the_word_stands_in_the_panel():
    with house_style():
        figure = draw_allreduce(book(*CELLS[2:]), "figure3")
        assert [t.get_text() for t in figure.axes[0].texts] == ["measured: not run"]
        figure = draw_allreduce(book(*CELLS[2:], at(0, missing_reason="unusable")), "figure3")
    assert [axes.texts[0].get_text() for axes in figure.axes] == ["measured: unusable"] * 3
