import pytest

from results.paper.claims.evidence import MEASURED, REPORTED, SIMULATED, View
from results.paper.claims.schedule import PAPER_TIMES, loads_hide, same_tokens, shares_of_time
from results.paper.claims.verdict import NOT_REPRODUCED, REPRODUCED, UNDECIDED, joined
from results.paper.index import Entry
from results.records.schema import Check, RunRecord
from tests.results.claim_books import book, cell, view
from tests.results.examples import as_config

ROWS = ("llama2-3b",)


@pytest.mark.parametrize(
    ("share", "changes", "verdict"),
    [
        (0.03, {}, REPRODUCED),
        (0.20, {}, NOT_REPRODUCED),
        (0.05, {"low": 0.03, "high": 0.07, "n": 3}, UNDECIDED),
    ],
)
def test_loads_hide_by_the_share_spent_waiting(share, changes, verdict):
    waiting = cell("table1 llama2-3b on wait_weights_share", share, **changes)
    assert joined(loads_hide(view(waiting), ROWS, 0.05)).verdict == verdict


def test_loads_hide_is_undecided_without_a_run():
    assert joined(loads_hide(view(), ROWS, 0.05)).verdict == UNDECIDED


@pytest.mark.parametrize(("on", "verdict"), [(1.9, NOT_REPRODUCED), (1.0, REPRODUCED)])
def test_loads_of_the_paper_hide_if_the_scheduler_costs_nothing(on, verdict):
    cells = [
        cell(f"table1 llama2-3b {column} token_latency_s", value, "reported")
        for column, value in (("on", on), ("off", 1.0))
    ]
    found = joined(loads_hide(view(*cells, kind=REPORTED), ROWS, 0.05))
    assert found.verdict == verdict
    assert "Prop. 3 holds" in found.items[-1].figure
    assert "Prop. 4 fails" in found.items[-1].figure


def test_the_papers_example_decides_nothing():
    assert joined(loads_hide(view(kind=REPORTED), ROWS, 0.05)).verdict == UNDECIDED
    assert PAPER_TIMES.ffn_load_s == 0.030


@pytest.mark.parametrize(
    ("pipeline", "tensor", "verdict"),
    [
        (0.02, 0.7, REPRODUCED),
        (0.4, 0.7, NOT_REPRODUCED),
        (0.02, 0.3, NOT_REPRODUCED),
        (0.02, None, UNDECIDED),
        (None, 0.7, UNDECIDED),
    ],
)
def test_shares_of_time(pipeline, tensor, verdict):
    given = {"pipeline run allreduce_share": pipeline, "tpi run allreduce_share": tensor}
    cells = [cell(f"figure1b {name}", v) for name, v in given.items() if v is not None]
    assert joined(shares_of_time(view(*cells), 0.05, 0.5)).verdict == verdict


def test_shares_of_time_are_undecided_across_a_bound():
    cells = [
        cell("figure1b pipeline run allreduce_share", 0.04, low=0.02, high=0.06, n=3),
        cell("figure1b tpi run allreduce_share", 0.7),
    ]
    assert joined(shares_of_time(view(*cells), 0.05, 0.5)).verdict == UNDECIDED


def test_the_papers_shares_stand_in_a_column_of_their_own():
    cells = [
        cell(f"figure1b {row} communication allreduce_share", share, "reported")
        for row, share in (("pipeline", 0.02), ("tpi", 0.7))
    ]
    assert joined(shares_of_time(view(*cells, kind=REPORTED), 0.05, 0.5)).verdict == REPRODUCED


@pytest.mark.parametrize(
    ("check", "verdict"),
    [
        (Check("exact", passed=True, agreement=1.0), REPRODUCED),
        (Check("exact", passed=False, agreement=0.5, first_difference=3), NOT_REPRODUCED),
        (Check("exact", detail="the reference broke"), UNDECIDED),
        (Check("bounded", passed=True, agreement=0.9), UNDECIDED),
        (Check("bounded", passed=False, agreement=0.2), UNDECIDED),
        (Check("two_layer_bounded"), UNDECIDED),
        (Check("two_layer", passed=True, agreement=1.0), UNDECIDED),
        (Check("two_layer", passed=False, agreement=0.5), NOT_REPRODUCED),
        (Check(), UNDECIDED),
    ],
)
def test_same_tokens_by_the_check_of_each_run(check, verdict):
    record = RunRecord("tpi-1", "tpi", "ok", check=check)
    entry = Entry("table1", "llama2-3b", "on", "tpi", (), "tpi-1")
    seen = View(book(records={"tpi-1": record}, entries=(entry,)), MEASURED)
    assert joined(same_tokens(seen)).verdict == verdict
    assert joined(same_tokens(View(seen.results, SIMULATED))).verdict == UNDECIDED


def test_a_record_of_another_system_gives_no_tokens():
    record = RunRecord("tpi-1", "transformers", "ok", check=Check("exact", True, 1.0))
    entry = Entry("table1", "llama2-3b", "on", "tpi", (), "tpi-1")
    seen = View(book(records={"tpi-1": record}, entries=(entry,)), MEASURED)
    assert joined(same_tokens(seen)).verdict == UNDECIDED


def test_a_check_of_two_layers_decides_nothing_beside_a_whole_one():
    records = {
        name: RunRecord(name, "tpi", "ok", check=Check(kind, True, 1.0), config=as_config(config))
        for name, kind, config in (
            ("tpi-1", "exact", {"model": {"name": "tiny"}}),
            ("tpi-2", "two_layer", {"model": {"name": "llama2-70b"}}),
        )
    }
    entries = tuple(Entry("table1", "llama2-3b", "on", "tpi", (), name) for name in records)
    found = joined(same_tokens(View(book(records=records, entries=entries), MEASURED)))
    assert (found.verdict, found.subject) == (REPRODUCED, "tiny")
    assert "two layers of the shape only" in str(found.items[1])
