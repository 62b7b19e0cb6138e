import pytest

from results.paper.cell import EXHIBITS
from results.paper.index import Entry
from results.paper.render.figures.draw import draw
from results.paper.render.figures.style import house_style, png_bytes, svg_bytes
from tests.results.books import book, cell

FIGURES = [name for name in EXHIBITS if name.startswith("figure")]


def words_of(figure):
    return "\n".join(text.get_text() for text in figure.texts)


@pytest.mark.parametrize("exhibit", FIGURES)
def test_figure_with_nothing_to_draw_says_which_runs_are_missing(exhibit):
    with house_style():
        words = words_of(draw(book(), exhibit))
    assert "nothing to draw" in words
    if exhibit != "figure3":  # whose latencies are not known beforehand
        assert "not run" in words


def test_missing_runs_are_named_with_what_became_of_them(tmp_path):
    entries = (
        Entry("figure4", "window", "tpi", "tpi", ()),
        Entry("figure4", "window", "sim", "tpi", (), "tpi-1"),
    )
    with house_style():
        words = words_of(draw(book(entries=entries, folder=tmp_path), "figure4"))
    assert "window, TPI-LLM: not run" in words
    assert "window, sim: unusable" in words


def test_smoke_is_said_in_the_figure():
    made = cell("figure5a 8 tpi token_latency_s", value=3.0, scale="smoke")
    with house_style():
        figure = draw(book(made, scale="smoke"), "figure5a")
    assert "smoke in the paper's place" in figure.get_supxlabel()


@pytest.mark.parametrize("saved", [svg_bytes, png_bytes])
def test_same_book_gives_the_same_bytes_twice(saved):
    made = [
        cell("figure5a 8 tpi token_latency_s", value=3.0, dilation=8.0),
        cell("figure5a 6 tpi token_latency_s", "simulated", value=4.0),
    ]

    with house_style():
        first, again = (saved(draw(book(*made), "figure5a")) for _ in range(2))
    assert first == again
    assert b"<dc:date>" not in first
    assert first.startswith((b"<?xml", b"\x89PNG"))


def test_settings_of_the_user_change_nothing():
    import matplotlib as mpl

    made = cell("figure5a 8 tpi token_latency_s", value=3.0)
    with house_style():
        expected = svg_bytes(draw(book(made), "figure5a"))
    with mpl.rc_context({"font.size": 20, "axes.grid": True}):
        with house_style():
            assert svg_bytes(draw(book(made), "figure5a")) == expected
        assert mpl.rcParams["font.size"] == 20
