import csv
import io

import pytest

from results.paper.cell import Place
from results.paper.cells.load import open_result_set
from results.paper.cells.pipeline_shares import devices_of, pipeline_shares
from results.paper.claims.evidence import samples_of
from results.paper.claims.judge import judge
from results.paper.claims.list import CLAIMS
from results.paper.index import Entry, Index, write_index
from results.paper.render.csv import cells_csv
from results.paper.render.figures.shares import stacks_of
from results.paper.render.markdown import figure_markdown
from results.paper.render.sections import shown_cells
from results.records.schema import Check, RunRecord
from results.records.store import RunStore
from tests.results.claim_books import known
from tests.results.examples import as_config, make_repeat

RUN_ID = "pipeline-0123456789abcdef"
MEAN = {"compute": 0.245, "allreduce": 0.7, "wait_weights": 0.0, "other": 0.055}
SHARE = ("figure1b", "pipeline", "run")


def test_four_devices_compute_one_after_another():
    found = pipeline_shares(MEAN, 4)
    assert found["compute"] == pytest.approx(0.98)
    assert found["allreduce"] == pytest.approx(0.02)


def test_shares_stay_between_nothing_and_all():
    found = pipeline_shares({**MEAN, "compute": 0.26}, 4)
    assert (found["compute"], found["allreduce"]) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("config", "count"),
    [
        ({"predicted_peak_bytes": [1, 2, 3], "devices": 4}, 3),
        ({"devices": 2}, 2),
        ({}, None),
    ],
)
def test_devices_are_those_of_the_record(config, count):
    assert devices_of(RunRecord(RUN_ID, "pipeline", "ok", config=as_config(config))) == count


def opened(folder, **config):
    """A folder with one pipeline of two devices."""
    config |= {"model": {"name": "llama3.1-8b"}, "testbed": {"backend": "docker"}}
    check = Check("exact", passed=True, agreement=1.0)
    record = RunRecord(RUN_ID, "pipeline", "ok", config=as_config(config), check=check)
    RunStore(folder).append(record, make_repeat(gap_ms=200))
    entry = Entry("figure1b", "pipeline", "run", "pipeline", (), RUN_ID)
    write_index(folder, Index("small", (entry,)))
    return open_result_set(folder)


def test_without_a_count_of_devices_there_is_no_share(tmp_path):
    (found,) = opened(tmp_path).of(Place(*SHARE, "compute_share"), "measured")
    assert (found.value, found.missing_reason) == (None, "unusable")
    assert "how many devices" in found.detail


def test_figure_table_csv_and_claim_say_the_same(tmp_path):
    made = opened(tmp_path, predicted_peak_bytes=[1, 1])
    record = made.records[RUN_ID]
    share = 1 - 2 * known(record.metrics).time_share["compute"]
    assert share != pytest.approx(known(record.metrics).time_share["allreduce"])
    place = Place(*SHARE, "allreduce_share")
    (measured,) = made.of(place, "measured")
    assert measured.value == pytest.approx(share)
    assert known(samples_of(made, measured)) == [[pytest.approx(share)]]
    stacks = [s for s in stacks_of(made, "figure1b") if s.label == "measured, small"]
    assert known(stacks[0].known["allreduce"].value) == pytest.approx(share)
    rows = csv.DictReader(io.StringIO(cells_csv(shown_cells(made, "figure1b"), made)))
    values = [r["value"] for r in rows if r["run_id"] and r["metric"] == "allreduce_share"]
    assert [float(value) for value in values] == [pytest.approx(share)]
    text = figure_markdown(made, "figure1b")
    assert f"**{100 * share:.3g} %**" in text
    assert "computation is that of all 2 devices" in text
    (claim,) = (each for each in CLAIMS if each.name == "shares-of-time")
    (item, _) = judge(made, claim).findings["measured"].items
    assert f"communication {100 * share:.1f} %" in item.figure
