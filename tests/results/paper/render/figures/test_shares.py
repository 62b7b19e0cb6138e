import pytest

from results.paper.render.figures.shares import draw_shares, stacks_of
from results.paper.render.figures.style import house_style
from tests.results.books import book, cell
from tests.results.figures.looks import bars

PAPER = cell("figure1b tpi communication allreduce_share", "reported", value=0.7)
OURS = [
    cell(f"figure1b tpi tpi {name}_share", value=value, run_id="tpi-1", scale="small")
    for name, value in (("compute", 0.5), ("allreduce", 0.3), ("wait_weights", 0.1))
]


def test_each_source_is_a_stack_of_its_own():
    stacks = [s for s in stacks_of(book(PAPER, *OURS), "figure1b") if s.known]
    assert [s.label for s in stacks] == ["paper", "measured, small"]
    assert {name: c.value for name, c in stacks[1].known.items()} == {
        "compute": 0.5,
        "allreduce": 0.3,
        "wait_weights": 0.1,
    }


def test_two_runs_of_one_system_are_two_stacks():
    again = [cell(str(c.place), value=0.2, run_id="tpi-2", scale="small") for c in OURS]
    stacks = [s for s in stacks_of(book(*OURS, *again), "figure1b") if s.known]
    assert len(stacks) == 2


def test_stack_is_as_high_as_its_shares_and_the_rest_has_its_word():
    with house_style():
        figure = draw_shares(book(PAPER, *OURS), "figure1b")
    (axes,) = figure.axes
    tops = [p.get_y() + p.get_height() for p in bars(axes)]
    assert max(tops) == pytest.approx(90)
    words = [t.get_text() for t in axes.texts]
    assert {"70 %", "50 %", "30 %"} <= set(words)
    assert words.count("not run") == 1  # model parallelism
    assert axes.get_ylabel() == "share of the time (%)"
    assert "tensor\nparallel\npaper" in [t.get_text() for t in axes.get_xticklabels()]
