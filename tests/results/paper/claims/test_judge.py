import pytest

from results.paper.cell import StudiedNetwork
from results.paper.cells.allreduce import LINKS_MS
from results.paper.claims.judge import judge, judge_claims, main, markdown
from results.paper.claims.list import CLAIMS
from results.paper.claims.verdict import NOT_REPRODUCED, REPRODUCED, UNDECIDED
from results.paper.index import Entry
from results.paper.render.cell_format import escaped
from results.paper.values.paper_values import reported_cells
from results.records.schema import Check, RunRecord
from tests.results.claim_books import book, cell
from tests.results.examples import as_config
from tests.results.paper.claims.test_evidence import stored


def named(name):
    (claim,) = (claim for claim in CLAIMS if claim.name == name)
    return claim


OOM = named("accelerate-oom")
WHERE = str(OOM.places[0])


def test_names_are_unique_and_every_claim_says_what_decides():
    assert len({claim.name for claim in CLAIMS}) == len(CLAIMS)
    for claim in CLAIMS:
        assert claim.sentence
        assert claim.source
        assert claim.rule
        assert claim.places or claim.name == "same-tokens"


def test_an_empty_book_leaves_every_claim_undecided_with_a_reason():
    for each in judge_claims(book()):
        assert (each.verdict, each.basis) == (UNDECIDED, "")
        assert each.reason.startswith("measured: ")
        assert "; simulated: " in each.reason


def test_measurements_come_before_the_simulator_and_are_not_mixed_with_it():
    found = judge(book(cell(WHERE, 20), cell(WHERE, "oom", "simulated")), OOM)
    assert (found.verdict, found.basis, found.words) == (
        NOT_REPRODUCED, "measured", NOT_REPRODUCED,
    )  # fmt: skip
    assert found.findings["simulated"].verdict == REPRODUCED


def test_the_simulator_decides_where_nothing_was_measured_and_says_so():
    found = judge(book(cell(WHERE, "oom", "simulated")), OOM)
    assert (found.verdict, found.basis) == (REPRODUCED, "simulated")
    assert found.words == "reproduced (simulated)"


def links(*latencies_ms):
    """Every algorithm's time at some link latencies, as the paper has them."""
    return [
        cell(f"figure3 {row} {name} allreduce_s", links * int(row) / 1e3, source="4 bytes",
             network=StudiedNetwork(8))
        for row in latencies_ms
        for name, links in (("star", 8), ("tree", 16), ("ring", 56))
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["star-first", "links-8-16-56"])
def test_a_part_of_the_places_proves_nothing_and_is_counted(name):
    whole, part = (judge(book(*links(*rows)), named(name)) for rows in (LINKS_MS, ("1", "2")))
    assert (whole.verdict, part.verdict) == (REPRODUCED, UNDECIDED)
    assert whole.findings["measured"].coverage == ""
    assert part.findings["measured"].coverage == "of 18 places 6 are there"
    assert "measured: undecided (of 18 places 6 are there)" in markdown(book(), [part])


def test_one_table_of_two_is_a_part_of_the_memory_claim():
    peaks = {"off": 34.9, "on": 3.1, "off/8": 34.9, "on/8": 3.1}
    cells = [
        cell(f"table{1 + ('/' in column)} llama2-70b {column} peak_memory_bytes", peak * 2**30)
        for column, peak in peaks.items()
    ]
    claim = named("memory-70b")
    assert judge(book(*cells), claim).verdict == REPRODUCED
    assert judge(book(*cells[:2]), claim).verdict == UNDECIDED


@pytest.mark.parametrize("name", ["accelerate-oom", "below-accelerate"])
def test_what_the_paper_reports_of_an_older_version_does_not_judge_todays(name):
    found = judge(book(*reported_cells()), named(name))
    assert "reported" not in found.findings
    assert "numbers are of an older version of Accelerate" in markdown(book(), [found])


def test_what_the_paper_reports_is_judged_and_decides_nothing():
    claim = named("accelerate-2024-oom")
    found = judge(book(cell(str(claim.places[0]), "oom", "reported")), claim)
    assert found.verdict == UNDECIDED
    assert found.findings["reported"].verdict == REPRODUCED


@pytest.mark.parametrize(
    ("name", "verdict"),
    [
        ("below-accelerate-2024", NOT_REPRODUCED),  # 8B: 70 and 74 %
        ("below-transformers", NOT_REPRODUCED),  # 8B: 88 %
        ("memory-70b", REPRODUCED),
        ("memory-flat", REPRODUCED),
        ("memory-proposition-5", NOT_REPRODUCED),
        ("latency-bounds", REPRODUCED),
        ("loads-hide", NOT_REPRODUCED),
        ("scheduler-costs", REPRODUCED),
        ("accelerate-2024-oom", REPRODUCED),
        ("shares-of-time", REPRODUCED),
    ],
)
def test_the_papers_own_numbers(name, verdict):
    assert judge(book(*reported_cells()), named(name)).findings["reported"].verdict == verdict


@pytest.mark.parametrize("name", ["below-galaxy", "star-first", "falls-with-devices"])
def test_the_paper_gives_no_numbers_for_some(name):
    (claim,) = (claim for claim in CLAIMS if claim.name == name)
    assert "reported" not in judge(book(*reported_cells()), claim).findings


def test_markdown_has_every_claim_with_its_rule_and_its_reason():
    made = book(cell(WHERE, 20))
    judgements = judge_claims(made)
    text = markdown(made, judgements)
    for each in judgements:
        assert f"#### {each.claim.name}: {each.words}" in text
        assert escaped(each.claim.rule) in text
        assert escaped(each.reason) in text


def test_command_judges_a_folder(tmp_path, capsys):
    stored(tmp_path, {"tpi": 100, "accelerate": 1000})
    assert main([str(tmp_path)]) == 0
    assert "89.9 % " in capsys.readouterr().out


def test_command_refuses_a_folder_without_an_index_in_one_line(tmp_path, capsys):
    assert main([str(tmp_path)]) != 0
    assert capsys.readouterr().err.count("\n") == 1


def test_a_verdict_says_which_models_its_tokens_are_of():
    record = RunRecord(
        "tpi-1",
        "tpi",
        "ok",
        check=Check("exact", True, 1.0),
        config=as_config({"model": {"name": "tiny"}}),
    )
    entry = Entry("table1", "llama2-3b", "on", "tpi", (), "tpi-1")
    found = judge(book(records={"tpi-1": record}, entries=(entry,)), named("same-tokens"))
    assert found.words == "reproduced (tiny)"


def test_what_all_verdicts_rest_on_stands_first(tmp_path):
    made = stored(tmp_path, {"tpi": 100, "accelerate": 1000})
    text = markdown(made, judge_claims(made))
    (said,) = [line for line in text.splitlines()[:5] if line.startswith("Of ")]
    assert said.startswith(f"Of {len(CLAIMS)} verdicts 2 rest on measured runs, 0 on simulated")
    assert said.endswith("Models of the measured runs: llama2-3b.")
    assert "none: nothing was measured" in markdown(book(), judge_claims(book()))
