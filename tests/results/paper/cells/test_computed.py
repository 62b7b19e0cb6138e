import subprocess
import sys
from pathlib import Path

import pytest

from results.paper.authors_model.memory import CostInputs
from results.paper.cells.computed import (
    AS_PUBLISHED,
    FORMULA,
    HOPS,
    OURS,
    OURS_32K,
    computed_cells,
    num_params,
    ours_peak_bytes,
)
from results.paper.values.paper_values import reported_cells
from tpi.model_config import load_preset

GIB, MIB = 2**30, 2**20
MEMORY = "peak_memory_bytes"


@pytest.fixture(scope="module")
def cells():
    return {
        (c.place.exhibit, c.place.row, c.place.column, c.source): c.value for c in computed_cells()
    }


def test_cells_of_one_place_differ_in_source():
    found = computed_cells()
    assert all(c.evidence == "computed" and c.source and c.detail for c in found)
    assert len({(c.place, c.source) for c in found}) == len(found)


def test_memory_tables_have_both_memories_in_every_cell_of_the_paper():
    found = computed_cells()
    for exhibit in ("table1", "table2", "table6"):
        for source in (AS_PUBLISHED, OURS):
            places = {c.place for c in found if c.place.exhibit == exhibit and c.source == source}
            assert places == {
                c.place
                for c in reported_cells()
                if c.place.exhibit == exhibit and c.place.metric == MEMORY
            }


def test_ours_streams_70b_in_less_than_0_6_gib_and_less_than_published(cells):
    ours = cells["table1", "llama2-70b", "on", OURS]
    assert ours < 0.6 * GIB
    assert all(
        value < cells[(*key[:3], AS_PUBLISHED)]
        for key, value in cells.items()
        if key[0] in ("table1", "table2", "table6") and key[3] == OURS
    )


def test_block_sizes_by_formula_are_table4_and_files_add_less_than_a_page_each(cells):
    for row, mib in {
        "preprocess": 500, "attention": 64, "ffn": 129, "postprocess": 500,
    }.items():  # fmt: skip
        formula = cells["table4", row, "size", FORMULA]
        assert formula / MIB == pytest.approx(mib, rel=0.01)
        tiles = 8 if row == "postprocess" else 1
        assert 0 <= cells["table4", row, "size", OURS] - formula < tiles * 4096 + 4096


def test_models_agree_with_table5(cells):
    for cell in reported_cells():
        place = cell.place
        if place.exhibit != "table5" or cell.value is None:
            continue
        ours = cells["table5", place.row, place.column, OURS]
        # Parameters are printed in billions, memory with room for what is not weights.
        off = {"params": 0.15, "required": 0.10}.get(place.column, 0.0)
        assert ours == pytest.approx(cell.value, rel=off), place


@pytest.mark.parametrize(
    ("model", "gib"),
    [("llama2-3b", 12.8), ("llama2-7b", 25.1), ("llama2-70b", 257.0), ("yi-34b", 128.1)],
)
def test_float32_weights(model, gib):
    assert 4 * num_params(load_preset(model)) / GIB == pytest.approx(gib, abs=0.06)


def test_llama2_7b_has_its_known_number_of_weights():
    assert num_params(load_preset("llama2-7b")) == 6_738_415_616


def test_allreduce_follows_hops_and_ours_comes_on_top_of_them(cells):
    for column, hops in {"star": 8, "tree": 16, "ring": 56}.items():
        for ms in (0, 1, 2, 4, 6, 8, 10):
            key = ("figure3", str(ms), column)
            published = cells[(*key, HOPS)]
            assert published == pytest.approx(hops * ms / 1e3)
            assert published < cells[(*key, OURS)] < cells[(*key, OURS_32K)]


def test_link_latency_bounds_4_bytes_and_payload_bounds_32_kib_without_latency(cells):
    assert cells["figure3", "1", "star", OURS] == pytest.approx(8e-3, rel=0.001)
    star, ring = (cells["figure3", "0", name, OURS_32K] for name in ("star", "ring"))
    assert star > 5 * ring


def test_memory_over_devices(cells):
    theoretical = [cells["figure1c", n, "theoretical", FORMULA] for n in ("1", "2", "4")]
    assert theoretical == [theoretical[0], theoretical[0] / 2, theoretical[0] / 4]
    assert cells["figure1c", "4", "tensor-parallel", AS_PUBLISHED] / GIB == pytest.approx(12, 0.1)
    flat = {cells["figure1c", n, "tpi", AS_PUBLISHED] for n in ("1", "2", "4")}
    assert len(flat) == 1


@pytest.mark.parametrize("model", ["llama2-70b", "llama2-7b"])
@pytest.mark.parametrize("window", [None, 2])
def test_the_master_is_our_largest_rank(model, window):
    setting = CostInputs(model, 6, window)
    peaks = [ours_peak_bytes(setting, rank) for rank in range(6)]
    assert max(peaks) == peaks[0]


def test_it_imports_no_torch():
    code = "import sys, results.paper.cells.computed; sys.exit('torch' in sys.modules)"
    root = Path(__file__).parents[4]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
