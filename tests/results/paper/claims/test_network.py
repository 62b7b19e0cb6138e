import dataclasses
from functools import partial

import pytest

from results.paper.cell import StudiedNetwork
from results.paper.cells.allreduce import LINKS_MS
from results.paper.claims.evidence import MEASURED, OURS, PUBLISHED, REPORTED, SIMULATED
from results.paper.claims.network import (
    crossing_delay_s,
    latency_bounds,
    ratio_of_links,
    star_is_first,
)
from results.paper.claims.verdict import NOT_REPRODUCED, REPRODUCED, UNDECIDED, joined
from tests.results.claim_books import cell, view
from tpi.comm.allreduces.star import Star

EIGHT = StudiedNetwork(8)


def at_all(star_ms, tree_ms, ring_ms, **changes):
    """The same times at every link latency of figure 3."""
    times_ms = (star_ms, tree_ms, ring_ms)
    return [point for row in LINKS_MS for point in points(*times_ms, row, **changes)]


def points(star_ms, tree_ms, ring_ms, row="1", **changes):
    changes = {"network": EIGHT} | changes
    times_ms = {"star": star_ms, "tree": tree_ms, "ring": ring_ms}
    return [
        cell(f"figure3 {row} {name} allreduce_s", ms / 1e3, source="4 bytes", **changes)
        for name, ms in times_ms.items()
        if ms is not None
    ]


@pytest.mark.parametrize(
    ("times_ms", "verdict"),
    [
        ((8, 16, 56), REPRODUCED),
        ((8, 56, 16), NOT_REPRODUCED),
        ((9, 8, 56), NOT_REPRODUCED),
        ((8, 16, None), UNDECIDED),
    ],
)
def test_star_is_first(times_ms, verdict):
    assert joined(star_is_first(view(*at_all(*times_ms)))).verdict == verdict


@pytest.mark.parametrize("rule", [star_is_first, partial(ratio_of_links, tolerance=0.15)])
def test_a_part_of_the_link_latencies_proves_nothing_and_may_disprove(rule):
    assert joined(rule(view(*points(8, 16, 56)))).verdict == UNDECIDED
    assert joined(rule(view(*points(8, 56, 16)))).verdict == NOT_REPRODUCED


@pytest.mark.parametrize("ran", [StudiedNetwork(4), None])
def test_a_study_of_other_than_8_devices_is_no_answer(ran):
    found = joined(star_is_first(view(*at_all(8, 16, 56, network=ran))))
    assert found.verdict == UNDECIDED
    assert "devices in the place of 8" in found.reason


def test_latencies_that_the_paper_does_not_have_decide_nothing():
    cells = [*at_all(8, 16, 56), *points(16, 8, 56, row="0.5")]
    found = joined(star_is_first(view(*cells)))
    assert found.verdict == REPRODUCED
    assert [item.verdict for item in found.items if item.label.startswith("0.5 ms")] == [""]


def test_star_is_first_is_undecided_where_intervals_overlap():
    cells = at_all(8, 16, 56)
    cells[1] = dataclasses.replace(cells[1], low=0.007, high=0.02)
    assert joined(star_is_first(view(*cells))).verdict == UNDECIDED


def test_without_link_latency_nothing_is_ordered():
    assert joined(star_is_first(view(*points(5, 4, 3, row="0")))).verdict == UNDECIDED


@pytest.mark.parametrize(
    ("times_ms", "verdict"),
    [
        ((8, 15.5, 54), REPRODUCED),
        ((8, 12, 56), NOT_REPRODUCED),
        ((8, None, 56), UNDECIDED),
    ],
)
def test_ratio_of_links(times_ms, verdict):
    assert joined(ratio_of_links(view(*at_all(*times_ms)), 0.15)).verdict == verdict


def test_ratio_of_links_is_undecided_across_the_tolerance():
    cells = at_all(8, 16, 56)
    cells[2] = dataclasses.replace(cells[2], low=0.045, high=0.06)
    assert joined(ratio_of_links(view(*cells), 0.15)).verdict == UNDECIDED


def test_below_1_ms_a_link_other_costs_hide_the_ratio_and_nothing_is_judged():
    assert joined(ratio_of_links(view(*points(8, 9, 10, row="0.5")), 0.15)).verdict == UNDECIDED


def payloads(small_ms, large_ms, row="1", **changes):
    return [
        cell(f"figure3 {row} star allreduce_s", ms / 1e3, source=source, network=EIGHT, **changes)
        for source, ms in (("4 bytes", small_ms), ("32 KiB", large_ms))
    ]


@pytest.mark.parametrize(
    ("times_ms", "verdict"), [((8, 12), REPRODUCED), ((8, 20), NOT_REPRODUCED)]
)
def test_latency_bounds_by_the_share_of_the_payload(times_ms, verdict):
    assert joined(latency_bounds(view(*payloads(*times_ms)))).verdict == verdict


def test_latency_bounds_is_undecided_across_one_half_or_without_the_papers_latency():
    wide = [cell(str(c.place), c.value, low=c.value * 0.8, high=c.value * 1.2, source=c.source,
                 network=EIGHT)
            for c in payloads(8, 16.5)]  # fmt: skip
    assert joined(latency_bounds(view(*wide))).verdict == UNDECIDED
    found = joined(latency_bounds(view(*payloads(80, 90, row="10"))))
    assert found.verdict == UNDECIDED
    assert any("10 ms a link: payload" in str(item) for item in found.items)


@pytest.mark.parametrize(("kind", "shown"), [(MEASURED, False), (SIMULATED, False), (OURS, True)])
def test_the_computed_crossing_stands_under_what_is_computed_alone(kind, shown):
    small, large = ("ours", "ours: 32 KiB") if kind == OURS else ("4 bytes", "32 KiB")
    evidence = "computed" if kind == OURS else kind.evidence
    cells = [
        cell("figure3 1 star allreduce_s", value, evidence, source=source, network=EIGHT)
        for value, source in ((0.008, small), (0.012, large))
    ]
    items = joined(latency_bounds(view(*cells, kind=kind))).items
    assert any("crossing" in item.label for item in items) == shown


def test_the_paper_itself_holds_by_its_own_time_of_the_data():
    found = joined(latency_bounds(view(kind=REPORTED)))
    assert found.verdict == REPRODUCED
    assert "payload 29.8 %" in found.items[0].figure


@pytest.mark.parametrize("kind", [SIMULATED, PUBLISHED])
def test_kinds_without_two_payloads_decide_nothing(kind):
    assert joined(latency_bounds(view(kind=kind))).verdict == UNDECIDED


def test_at_the_crossing_payloads_cost_what_the_links_do():
    delay_s = crossing_delay_s()
    cost_s = Star().cost_s(world_size=8, num_bytes=32 << 10, delay_s=delay_s, rate_bps=300e6)
    assert cost_s == pytest.approx(2 * 2 * delay_s)
    assert delay_s == pytest.approx(7 * 8 * (32 << 10) / 300e6)
