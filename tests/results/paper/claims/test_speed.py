import pytest

from results.paper.claims.evidence import REPORTED
from results.paper.claims.speed import below, falls_over, hardly_falls, scheduler_cost, speed_places
from results.paper.claims.verdict import NOT_REPRODUCED, REPRODUCED, UNDECIDED, joined
from tests.results.claim_books import cell, view

ROW = "table3 llama2-3b"


def rates(tpi_s, accelerate_s, **changes):
    """TTFT and latency of both systems."""
    return [
        cell(f"{ROW} {column} {metric}", value, **changes)
        for column, value in (("tpi", tpi_s), ("accelerate", accelerate_s))
        for metric in ("ttft_s", "token_latency_s")
    ]


def judged(*cells, rows=("llama2-3b",)):
    return joined(below(view(*cells), "table3", rows, "accelerate", 0.8))


def test_a_system_that_loads_first_is_compared_with_its_loading():
    cells = [
        cell("figure6 llama2-3b tpi ttft_s", 1),
        cell("figure6 llama2-3b tpi token_latency_s", 1),
        cell("figure6 llama2-3b galaxy ttft_s", 2),
        cell("figure6 llama2-3b galaxy first_token_s", 20),
        cell("figure6 llama2-3b galaxy token_latency_s", 20),
    ]
    found = joined(below(view(*cells), "figure6", ("llama2-3b",), "galaxy", 0.9))
    assert found.verdict == REPRODUCED
    assert "1 s against 20 s" in found.items[0].figure
    assert {str(p) for p in speed_places("figure6", ("llama2-3b",), "galaxy")} == {
        str(c.place) for c in cells if (c.place.column, c.place.metric) != ("galaxy", "ttft_s")
    }


def test_the_paper_has_one_time_to_first_token_alone():
    cells = [
        cell(f"{ROW} {column} {metric}", value, "reported")
        for column, value in (("tpi", 1), ("transformers", 20))
        for metric in ("ttft_s", "token_latency_s")
    ]
    found = joined(
        below(view(*cells, kind=REPORTED), "table3", ("llama2-3b",), "transformers", 0.9)
    )
    assert found.verdict == REPRODUCED


def test_below_holds_where_both_times_are():
    found = judged(*rates(2, 10))
    assert found.verdict == REPRODUCED
    assert [item.figure for item in found.items] == ["80.0 % less: 2 s against 10 s"] * 2


def test_below_fails_where_one_time_is_not():
    cells = rates(2, 10)
    cells[1] = cell(f"{ROW} tpi token_latency_s", 3)
    assert judged(*cells).verdict == NOT_REPRODUCED


def test_below_is_undecided_where_the_interval_holds_the_bound():
    cells = [
        cell(f"{ROW} tpi {metric}", 2, low=1.5, high=2.5, n=3)
        for metric in ("ttft_s", "token_latency_s")
    ]
    found = judged(*cells, *rates(0, 10)[2:])
    assert found.verdict == UNDECIDED
    assert "the interval holds 80 %" in found.reason


def test_below_is_undecided_where_a_model_was_not_run():
    found = judged(*rates(1, 10), rows=("llama2-3b", "llama2-7b"))
    assert found.verdict == UNDECIDED
    assert "tpi not run, accelerate not run (TTFT of Llama 2-7B" in found.reason


def test_a_model_that_the_other_cannot_run_does_not_count():
    oom = [cell(f"table3 llama2-13b accelerate {m}", "oom") for m in ("ttft_s", "token_latency_s")]
    assert judged(*rates(1, 10), *oom, rows=("llama2-3b", "llama2-13b")).verdict == REPRODUCED


def test_a_model_that_only_tpi_cannot_run_disproves():
    cells = rates(1, 10)
    cells[1] = cell(f"{ROW} tpi token_latency_s", "oom")
    assert judged(*cells).verdict == NOT_REPRODUCED


def over(exhibit, *values_s, **changes):
    rows = [str(n) for n in range(len(values_s))]
    cells = [
        cell(f"{exhibit} {row} tpi token_latency_s", value, **changes)
        for row, value in zip(rows, values_s, strict=True)
    ]
    return view(*cells), exhibit, rows


@pytest.mark.parametrize(
    ("values_s", "verdict"),
    [((40, 30, 20), REPRODUCED), ((40, 30, 30), NOT_REPRODUCED), ((40, 30), UNDECIDED)],
)
def test_falls_over_wants_each_step_to_fall(values_s, verdict):
    seen, exhibit, _ = over("figure5a", *values_s)
    assert joined(falls_over(seen, exhibit, ("0", "1", "2"), 0.05)).verdict == verdict


def test_falls_over_is_undecided_across_the_bound():
    cells = [
        cell("figure5a 0 tpi token_latency_s", 10, low=9, high=11, n=3),
        cell("figure5a 1 tpi token_latency_s", 9, low=8.5, high=9.5, n=3),
    ]
    assert joined(falls_over(view(*cells), "figure5a", ("0", "1"), 0.05)).verdict == UNDECIDED


@pytest.mark.parametrize(
    ("values_s", "verdict"), [((10, 9.5), REPRODUCED), ((10, 5), NOT_REPRODUCED), ((), UNDECIDED)]
)
def test_hardly_falls_compares_first_and_last(values_s, verdict):
    seen, exhibit, _ = over("figure5c", *values_s)
    assert joined(hardly_falls(seen, exhibit, ("0", "1"), 0.1)).verdict == verdict


def test_hardly_falls_is_undecided_across_the_bound():
    cells = [
        cell("figure5c 0 tpi token_latency_s", 10, low=9, high=11, n=3),
        cell("figure5c 1 tpi token_latency_s", 9.5, low=9, high=10, n=3),
    ]
    assert joined(hardly_falls(view(*cells), "figure5c", ("0", "1"), 0.1)).verdict == UNDECIDED


@pytest.mark.parametrize(
    ("on", "off", "verdict"),
    [(2, 1, REPRODUCED), (1, 2, NOT_REPRODUCED), (2, "not run", UNDECIDED), (2, "oom", UNDECIDED)],
)
def test_scheduler_cost_compares_where_both_fit(on, off, verdict):
    cells = [
        cell(f"table1 llama2-3b {column} token_latency_s", value)
        for column, value in (("on", on), ("off", off))
    ]
    assert joined(scheduler_cost(view(*cells), ("llama2-3b",))).verdict == verdict


def test_scheduler_cost_is_undecided_where_the_intervals_overlap():
    cells = [
        cell("table1 llama2-3b on token_latency_s", 1.1, low=0.9, high=1.3, n=3),
        cell("table1 llama2-3b off token_latency_s", 1.0, low=0.9, high=1.1, n=3),
    ]
    assert joined(scheduler_cost(view(*cells), ("llama2-3b",))).verdict == UNDECIDED
