import pytest

from results.paper.cell import Place
from results.paper.claims.memory import (
    DEVICES,
    flat_over_devices,
    follows_proposition_5,
    runs_out_of_memory,
    saves_memory,
)
from results.paper.claims.verdict import NOT_REPRODUCED, REPRODUCED, UNDECIDED, joined
from results.paper.render.layouts import MODELS
from tests.results.claim_books import GIB, cell, view
from tpi.model_config import load_preset
from tpi.planner.propositions import published_peak_bytes

TWO = ("llama2-3b", "llama2-70b")


def peak(exhibit, column, gib, row="llama2-70b", **changes):
    value = gib if isinstance(gib, str) else gib * GIB
    return cell(f"{exhibit} {row} {column} peak_memory_bytes", value, **changes)


def saved(*cells):
    return joined(saves_memory(view(*cells), "llama2-70b", 0.9, 3.15 * GIB))


@pytest.mark.parametrize(
    ("off", "on", "verdict"),
    [
        (34.9, 3.1, REPRODUCED),
        (34.9, 3.4, NOT_REPRODUCED),  # 90 % less, and above 3.1 GiB
        (20, 3.1, NOT_REPRODUCED),
        ("oom", 3.1, UNDECIDED),
        ("oom", "oom", NOT_REPRODUCED),
        (34.9, "oom", NOT_REPRODUCED),
        ("not run", "not run", UNDECIDED),
    ],
)
def test_saves_memory_wants_the_share_and_the_size(off, on, verdict):
    assert saved(peak("table1", "off", off), peak("table1", "on", on)).verdict == verdict


def test_saves_memory_takes_table_2_where_table_1_ran_out_of_memory():
    found = saved(
        peak("table1", "off", "oom"),
        peak("table1", "on", 3),
        peak("table2", "off/8", 35),
        peak("table2", "on/8", 3),
    )
    assert found.verdict == REPRODUCED
    assert [item.label for item in found.items] == [
        "Table 2, off to on",
        "peak with the scheduler",
    ]


def test_saves_memory_is_undecided_across_the_bound():
    wide = peak("table1", "on", 3, low=2.5 * GIB, high=3.1 * GIB)
    assert saved(peak("table1", "off", 29), wide).verdict == UNDECIDED


@pytest.mark.parametrize(
    ("peaks", "verdict"),
    [
        ((2, 1.9, 1.8, 1.7), REPRODUCED),
        ((2, 1.5, 1.2, 1), NOT_REPRODUCED),
        ((2, 1.9, 1.8), UNDECIDED),
        ((2, "oom", "failed", 1.9), UNDECIDED),
        ((2, "oom", "failed", 1), NOT_REPRODUCED),
        ((), UNDECIDED),
    ],
)
def test_flat_over_devices_compares_largest_and_smallest(peaks, verdict):
    cells = [
        peak("table2", f"on/{n}", gib, "llama2-7b")
        for n, gib in zip((2, 4, 6, 8), peaks, strict=False)
    ]
    assert joined(flat_over_devices(view(*cells), ("llama2-7b",), 0.25)).verdict == verdict


def proposition_5(gammas, exhibits=("table2", "table6"), counts=DEVICES):
    """Peaks that equation (7) gives with one gamma a model."""
    for exhibit in exhibits:
        window = {"table2": 2, "table6": 4}[exhibit]
        for row, gamma in gammas.items():
            for count in counts:
                size = published_peak_bytes(load_preset(row), 1 / count, window, is_master=True)
                yield peak(exhibit, f"on/{count}", gamma * size / GIB, row)


def test_proposition_5_holds_with_one_gamma():
    found = joined(follows_proposition_5(view(*proposition_5(dict.fromkeys(MODELS, 1.5))), 0.15))
    assert found.verdict == REPRODUCED
    assert "gamma 1.50" in found.items[0].figure


def test_proposition_5_fails_where_gammas_are_far_apart():
    cells = proposition_5(dict(zip(TWO, (1.0, 2.0), strict=True)))
    found = joined(follows_proposition_5(view(*cells), 0.15))
    assert found.verdict == NOT_REPRODUCED
    assert "the best one, 1.33, is 33.3 % off" in found.items[-1].figure


@pytest.mark.parametrize(
    ("models", "exhibits", "counts", "there"),
    [
        (MODELS, ("table2",), DEVICES, 28),
        (TWO, ("table2", "table6"), (2, 4), 8),
        (MODELS, ("table2", "table6"), DEVICES[:3], 42),
        ((), (), (), 0),
    ],
)
def test_proposition_5_is_undecided_where_cells_are_missing(models, exhibits, counts, there):
    cells = proposition_5(dict.fromkeys(models, 1.5), exhibits, counts)
    found = joined(follows_proposition_5(view(*cells), 0.15))
    assert found.verdict == UNDECIDED
    assert f"of 56 cells {there} are there" in found.reason


@pytest.mark.parametrize(
    ("value", "verdict"), [("oom", REPRODUCED), (20, NOT_REPRODUCED), ("failed", UNDECIDED)]
)
def test_runs_out_of_memory(value, verdict):
    place = Place("table3", "llama2-13b", "accelerate", "token_latency_s")
    assert joined(runs_out_of_memory(view(cell(str(place), value)), place)).verdict == verdict
