"""The study's expected latencies, its table, and figures read back."""

import json

import pytest
from msgspec import to_builtins
from msgspec.structs import replace

from harness.paper.allreduce_file import Asked, keep_aside, read_points
from harness.paper.allreduce_study import expected_s, main
from results.paper.cells.allreduce import Point
from testbed.links.link import LinkSpec
from tests.study_table import markdown
from tpi.errors import TpiError

KLONET = LinkSpec(0.002, 300e6, 0.0, 1 << 20)


@pytest.mark.parametrize(("algorithm", "hops"), [("star", 8), ("tree", 16), ("ring", 56)])
def test_published_latency_is_hops_of_the_paper(algorithm, hops):
    # Two links of 1 ms lie between a device and the core (Proposition 2).
    bound_s, published_s = expected_s(algorithm, 8, 4, KLONET)
    assert published_s == pytest.approx(hops * 1e-3)
    assert published_s < bound_s < published_s + 1e-4


def test_bound_counts_what_the_master_serialises():
    bound_s, published_s = expected_s("star", 8, 32768, KLONET)
    payload_s = 32768 * 8 / 300e6
    assert bound_s - published_s > 2 * 7 * payload_s
    assert bound_s - published_s < 2 * 7 * payload_s * 1.1


def points():
    return [
        Point(name, delay_ms, count, 8, 0.0125, 0.012, 0.013, 15, 0.012, 0.008)
        for delay_ms in (0.0, 2.0)
        for name in ("tree", "star")
        for count in (4, 32768)
    ]


def test_markdown_has_a_row_a_delay_and_payloads_side_by_side():
    head, _, *rows = markdown(points()).splitlines()
    assert head == "| delay to core | star, 4 B | tree, 4 B | star, 32768 B | tree, 32768 B |"
    assert rows[1].startswith("| 2 ms | 12.50 (12.00) |")
    assert len(rows) == 2


def test_points_read_back(tmp_path):
    path = tmp_path / "study.json"
    kept = {"schema": 1, "dilation": 8, "points": to_builtins(points())}
    path.write_text(json.dumps(kept))
    assert read_points(path) == points()


ASKED = Asked(8, (0.0, 2.0), (4, 32768), 15, 300, 8)


def test_a_changed_figure_is_no_study(tmp_path):
    path = tmp_path / "study.json"
    ASKED.keep(path, points())
    assert read_points(path) == points()
    path.write_text(path.read_text().replace('"median_s": 0.0125', '"median_s": 0.0025', 1))
    with pytest.raises(TpiError, match=r"study\.json: was changed after it was written"):
        read_points(path)


def test_a_study_of_another_host_is_not_gone_on_with(tmp_path, monkeypatch):
    path = tmp_path / "study.json"
    some = [replace(p, delay_ms=0.0) for p in points() if p.delay_ms == 0]
    ring = [replace(p, algorithm="ring") for p in some if p.algorithm == "star"]
    ASKED.keep(path, [*some, *ring, points()[-1]])
    assert list(ASKED.to_go_on_from(path)) == [0.0]  # of the other not all is there
    monkeypatch.setattr(
        "harness.paper.allreduce_file.host_fingerprint", lambda facts: str(id(facts))
    )
    assert ASKED.to_go_on_from(path) == {}


def test_what_a_study_cannot_go_on_from_is_set_aside(tmp_path):
    path = tmp_path / "study.json"
    assert keep_aside(path, []) is None
    for number in (1, 2):
        ASKED.keep(path, points())
        assert keep_aside(path, points()) is None  # it is gone on with
        assert keep_aside(path, points()[:1]) == tmp_path / f"study.{number}.json"
        assert not path.exists()
    assert read_points(tmp_path / "study.1.json") == points()
    path.write_text("{")
    assert keep_aside(path, points()) == tmp_path / "study.3.json"


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"schema": 2, "points": []}', '{"schema": 1, "points": [{}]}']
)
def test_what_is_no_study_is_refused_by_name(tmp_path, text):
    path = tmp_path / "study.json"
    path.write_text(text)
    with pytest.raises(TpiError, match=r"study\.json: "):
        read_points(path)


@pytest.mark.parametrize(
    ("argument", "word"),
    [
        ("--devices=0", "--devices: got 0"),
        ("--devices=1000000", "from 2 to 64"),
        ("--rounds=0", "--rounds"),
        ("--dilation=0", "--dilation"),
        ("--dilation=nan", "--dilation"),
        ("--rate-mbps=-1", "--rate-mbps"),
        ("--delays=-1", "--delays: got -1"),
        ("--delays=nan", "--delays"),
        ("--delays=1,1", "each once"),
        ("--bytes=3", "--bytes"),
        ("--bytes=6", "a multiple of 4"),
        ("--backend=nonsense", "--backend"),
        ("--out=/proc/nowhere/x.json", "/proc/nowhere"),
        ("--out=/proc", "is a folder"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_starts(argument, word, capsys):
    assert main([argument]) != 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("allreduce_study: ")
    assert word in line


@pytest.mark.parametrize("argument", ["--delays=", "--delays=a", "--bytes=x"])
def test_what_is_no_number_is_refused_by_name(argument, capsys):
    assert main([argument]) == 2
    assert "expected numbers as in" in capsys.readouterr().err
