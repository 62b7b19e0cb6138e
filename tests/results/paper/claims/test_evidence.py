import pytest

from results.paper.cell import Place
from results.paper.cells.result_set import read_result_set
from results.paper.cells.substitutions import stand_in
from results.paper.claims.evidence import MEASURED, OURS, REPORTED, SIMULATED, View
from results.paper.index import Entry, Index, write_index
from results.records.schema import Check, RunRecord
from results.records.store import RunStore
from tests.results.claim_books import book, cell, known, view
from tests.results.examples import as_config, make_repeat

TPI = Place("table3", "llama2-3b", "tpi", "token_latency_s")
OTHER = Place("table3", "llama2-3b", "accelerate", "token_latency_s")


def test_a_view_sees_one_kind_alone():
    cells = (cell(str(TPI), 1, "reported"), cell(str(TPI), 2), cell(str(TPI), 3, "simulated"))
    values = [
        known(View(book(*cells), kind).value(TPI)).median
        for kind in (REPORTED, MEASURED, SIMULATED)
    ]
    assert values == [1, 2, 3]


def test_what_is_infeasible_belongs_to_the_kind_that_it_would_have_been():
    cells = (cell(str(TPI), "infeasible", "infeasible", backend="sim", detail="needs 9 GiB"),)
    assert View(book(*cells), SIMULATED).look(TPI).reason == "infeasible: needs 9 GiB"
    assert View(book(*cells), MEASURED).look(TPI).reason == "not run"


def test_a_tiny_model_in_the_papers_place_is_no_answer():
    assert view(cell(str(TPI), 1, scale="smoke")).value(TPI) is None
    record = RunRecord("tpi-1", "tpi", "ok", config=as_config({"model": {"name": "tiny"}}))
    tiny = cell(str(TPI), 1, "simulated", run_id="tpi-1")
    assert stand_in(book(tiny, records={"tpi-1": record}), tiny) == (
        "tiny ran in the place of llama2-3b"
    )


def test_a_simulated_run_of_the_true_model_counts_at_smoke_scale():
    true = cell(str(TPI), 1, "simulated", scale="smoke", run_id="tpi-1")
    record = RunRecord("tpi-1", "tpi", "ok", config=as_config({"model": {"name": "llama2-3b"}}))
    assert known(View(book(true, records={"tpi-1": record}), SIMULATED).value(TPI)).median == 1


def test_times_of_plain_processes_are_no_answer_and_their_memory_is():
    assert "plain processes" in view(cell(str(TPI), 1, backend="local")).look(TPI).reason
    memory = "table2 llama2-3b on/2 peak_memory_bytes"
    assert known(view(cell(memory, 1, backend="local")).value(Place(*memory.split()))).median == 1


def test_a_ratio_without_repeats_is_as_wide_as_both_intervals_allow():
    seen = view(cell(str(TPI), 2, low=1, high=3, n=3), cell(str(OTHER), 10, low=8, high=12, n=2))
    ratio = known(seen.ratio(TPI, OTHER))
    assert (ratio.median, ratio.low, ratio.high, ratio.n) == (0.2, 1 / 12, 3 / 8, 2)


def test_backends_are_not_mixed_in_a_ratio():
    memory = [f"table1 llama2-3b {column} peak_memory_bytes" for column in ("on", "off")]
    seen = view(cell(memory[0], 1, backend="local"), cell(memory[1], 2, backend="docker"))
    places = (Place(*memory[0].split()), Place(*memory[1].split()))
    assert seen.ratio(*places) is None
    assert seen.why_no_ratio(*places) == "measured on different backends or hosts"


def test_computed_kinds_are_told_apart_by_their_source():
    memory = "table2 llama2-3b on/2 peak_memory_bytes"
    cells = (
        cell(memory, 1, "computed", source="ours"),
        cell(memory, 2, "computed", source="as published"),
    )
    assert known(View(book(*cells), OURS).value(Place(*memory.split()))).median == 1


def stored(folder, gaps_ms):
    """Records of two systems, one gap in ms each, three repeats that differ by 1 ms."""
    store, entries = RunStore(folder), []
    for number, (column, gap_ms) in enumerate(gaps_ms.items()):
        run_id = f"{column}-{number:016x}"
        config = {"model": {"name": "llama2-3b"}, "testbed": {"backend": "docker"}}
        check = Check("exact", passed=True, agreement=1.0)
        record = RunRecord(run_id, column, "ok", config=as_config(config), check=check)
        for index in range(3):
            record = store.append(record, make_repeat(index, gap_ms + index))
        entries.append(Entry("table3", "llama2-3b", column, column, (), run_id))
    write_index(folder, Index("small", tuple(entries)))
    return read_result_set(folder)


def test_a_ratio_of_two_runs_is_bootstrapped_from_their_repeats(tmp_path):
    seen = View(stored(tmp_path, {"tpi": 100, "accelerate": 1000}), MEASURED)
    ratio = known(seen.ratio(TPI, OTHER))
    assert ratio.median == pytest.approx(101 / 1001)
    assert 100 / 1002 <= ratio.low < ratio.high <= 102 / 1000
    assert ratio.n == 3


def test_a_share_has_the_interval_of_its_repeats(tmp_path):
    seen = View(stored(tmp_path, {"tpi": 100}), MEASURED)
    share = known(seen.value(Place("table3", "llama2-3b", "tpi", "wait_weights_share")))
    assert share.n == 3
    assert share.low < share.median < share.high
