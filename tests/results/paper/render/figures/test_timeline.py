import pytest

from results.paper.render.figures.style import house_style
from results.paper.render.figures.timeline import MAX_SPANS, cut, draw_timeline
from results.paper.render.figures.traced import Traced
from results.records.spans import RankSpan
from tests.results.examples import make_repeat
from tests.results.figures.looks import right_end


def spans(count, ranks=2):
    """Compute 10 ms, then allreduce 5 ms, again and again."""
    return tuple(
        RankSpan(rank, name, "", 0.015 * i + start, 0.015 * i + end)
        for rank in range(ranks)
        for i in range(count)
        for name, start, end in (("compute", 0.0, 0.010), ("allreduce", 0.010, 0.015))
    )


def traced(row="tpi", kind="measured", count=3):
    return Traced(row, kind, f"{kind}, small", make_repeat(), spans(count))


def test_short_run_is_drawn_whole():
    piece = cut(spans(3))
    assert (len(piece.spans), piece.is_cut) == (12, False)
    assert piece.end_s == pytest.approx(0.045)


def test_long_run_ends_where_its_spans_could_not_be_told_apart():
    piece = cut(spans(MAX_SPANS))
    assert piece.is_cut
    assert piece.end_s == pytest.approx(0.015 * MAX_SPANS / 2)
    assert len(piece.spans) == 2 * MAX_SPANS


def test_nothing_is_cut_of_nothing():
    assert cut(()).spans == ()


def test_panels_have_a_row_a_device_and_the_time_of_each_activity():
    with house_style():
        figure = draw_timeline([traced("pipeline", "simulated"), traced()])
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "model parallel (simulated, small)",
        "tensor parallel (measured, small)",
    ]
    axes = figure.axes[1]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["device 0", "device 1"]
    assert max(map(right_end, axes.collections)) == pytest.approx(0.045)
    assert axes.get_xlabel() == "time since the request (s)"
    labels = {t.get_text() for legend in figure.legends for t in legend.get_texts()}
    assert labels == {"computation", "communication"}


def test_cut_is_said_in_the_title():
    with house_style():
        figure = draw_timeline([traced(count=MAX_SPANS)])
    assert figure.axes[0].get_title(loc="left").endswith("its first 3 s")


def test_loading_is_a_strip_beside_what_else_goes_on():
    load = RankSpan(0, "load", "ffn.0", 0.0, 0.02)
    wait = RankSpan(0, "wait", "ffn.0", 0.045, 0.05)
    run = Traced("tpi", "measured", "", make_repeat(), (*spans(3, ranks=1), load, wait))
    with house_style():
        figure = draw_timeline([run])
    labels = {t.get_text() for legend in figure.legends for t in legend.get_texts()}
    assert labels >= {"loading weights", "waiting for weights"}
    bottoms = {c.get_paths()[0].get_extents().y0 for c in figure.axes[0].collections}
    assert len(bottoms) == 2


def test_runs_of_one_kind_end_together_and_others_on_their_own():
    runs = [traced(count=MAX_SPANS), traced("pipeline", count=1000), traced("tpi", "simulated")]
    with house_style():
        figure = draw_timeline(runs)
    ends = [axes.get_xlim()[1] for axes in figure.axes]
    assert ends == [pytest.approx(3), pytest.approx(3), pytest.approx(0.045)]
    assert figure.axes[1].get_title(loc="left").endswith("its first 3 s")
