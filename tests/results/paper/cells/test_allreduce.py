import json
from pathlib import Path

import pytest

from results.paper.cells.allreduce import (
    LINKS_MS,
    STUDY_FILE,
    allreduce_cells,
    cells_of,
    read_study,
    signed,
)
from results.paper.cells.load import open_result_set
from results.paper.index import Index, StudyEntry, write_index
from results.records.schema import RecordError

PUBLISHED = Path(__file__).parents[4] / "results" / "published" / "allreduce.json"
POINT = {
    "algorithm": "star", "delay_ms": 2, "num_bytes": 4, "world_size": 8, "median_s": 0.0085,
    "low_s": 0.008, "high_s": 0.009, "rounds": 15, "bound_s": 0.008, "published_s": 0.0081,
}  # fmt: skip


def study(folder, *points, **changes):
    path = folder / STUDY_FILE
    path.write_text(json.dumps({"schema": 1, "dilation": 8, "points": list(points), **changes}))
    return path


def test_point_is_a_measured_cell_at_half_its_delay_beside_its_closed_forms(tmp_path):
    measured, ours, hops = cells_of(read_study(study(tmp_path, POINT)), "small")
    assert str(measured.place) == "figure3 1 star allreduce_s"
    assert (measured.value, measured.low, measured.high) == (0.0085, 0.008, 0.009)
    assert (measured.n, measured.dilation, measured.backend) == (15, 8.0, "docker")
    assert (measured.evidence, measured.source, measured.scale) == ("measured", "4 bytes", "small")
    assert (ours.evidence, ours.source, ours.value) == ("computed", "ours", 0.008)
    assert (hops.evidence, hops.source, hops.value) == ("computed", "published: hops", 0.0081)


def test_other_payloads_have_a_name_and_no_hops(tmp_path):
    cells = list(cells_of(read_study(study(tmp_path, {**POINT, "num_bytes": 32768})), "small"))
    assert [c.source for c in cells] == ["32 KiB", "ours: 32 KiB"]


def test_published_study_is_read():
    cells = list(cells_of(read_study(PUBLISHED), "small"))
    measured = [c for c in cells if c.evidence == "measured"]
    assert {c.place.column for c in measured} == {"star", "tree", "ring"}
    assert {c.source for c in measured} == {"4 bytes", "32 KiB"}
    assert {"0", "0.5", "5"} <= {c.place.row for c in measured}


def test_no_study_is_no_cell(tmp_path):
    assert allreduce_cells(tmp_path, "small") == ()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schema": 0}, "schema must be 1, got 0"),
        ({"dilation": 0.5}, "dilation"),
        ({"points": []}, "points"),
        ({"points": [{**POINT, "median_s": "fast"}]}, "median_s"),
        ({"points": [{**POINT, "algorithm": "mesh"}]}, "algorithm"),
        ({"points": [{k: v for k, v in POINT.items() if k != "low_s"}]}, "low_s"),
    ],
)
def test_study_that_does_not_fit_is_refused_by_name(tmp_path, changes, words):
    path = study(tmp_path, POINT, **changes)
    with pytest.raises(RecordError, match=words) as caught:
        read_study(path)
    assert STUDY_FILE in str(caught.value)


def test_half_written_study_is_cells_that_say_so(tmp_path):
    path = study(tmp_path, POINT)
    path.write_bytes(path.read_bytes()[:-20])
    cells = allreduce_cells(tmp_path, "smoke")
    assert {c.place.column for c in cells} == {"star", "tree", "ring"}
    assert {c.place.row for c in cells} == {"0", *LINKS_MS}  # whichever a claim asks for
    assert {c.missing_reason for c in cells} == {"unusable"}
    assert all("not JSON" in c.detail for c in cells)


def test_a_changed_figure_is_a_problem_of_the_book(tmp_path):
    path = study(tmp_path, POINT)
    path.write_text(json.dumps(signed(json.loads(path.read_text()))))
    write_index(tmp_path, Index("small"))
    assert open_result_set(tmp_path).problems == ()
    path.write_text(path.read_text().replace("0.0085", "9.0085"))
    [problem] = open_result_set(tmp_path).problems
    assert f"{STUDY_FILE}: was changed after it was written" in problem
    path.write_bytes(path.read_bytes()[:50])
    [problem] = open_result_set(tmp_path).problems
    assert "not JSON" in problem


@pytest.mark.parametrize(
    ("words", "word"), [({"refusal": "no Docker"}, "infeasible"), ({"failure": "died"}, "failed")]
)
def test_figure_3_says_why_there_is_no_study(tmp_path, words, word):
    write_index(tmp_path, Index("small", (), (StudyEntry("allreduce", "figure3", **words),)))
    measured = [c for c in open_result_set(tmp_path).exhibit("figure3") if c.evidence == "measured"]
    assert {(c.missing_reason, c.detail) for c in measured} == {(word, *words.values())}
    study(tmp_path, POINT)
    cells = open_result_set(tmp_path).exhibit("figure3")
    assert not any(c.missing_reason for c in cells if c.evidence == "measured")


def test_published_study_has_a_digest():
    raw = json.loads(PUBLISHED.read_text())
    assert raw == signed(raw)
