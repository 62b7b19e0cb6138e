from pathlib import Path
from statistics import median

import pytest

from results.paper.cells.load import open_result_set
from results.paper.cells.result_set import read_result_set
from results.paper.cells.validation import PAIRED, noise_floors, pairs_of
from results.paper.index import Entry, Index, write_index
from results.records.schema import RunRecord
from results.records.store import RunStore
from tests.results.claim_books import book, cell, known
from tests.results.examples import as_config, make_repeat
from tests.results.paper.claims.test_evidence import stored

PUBLISHED = Path(__file__).parents[4] / "results" / "published"
# A machine each, and what of it the simulator misses: results/LOG.md says why.
MISSED = {"paper-small": set(), "paper-small-first": {("1 device", "accelerate")}}
WHERE = ("table1 llama2-3b on", "table1 llama2-7b on", "table1 llama2-13b on")


def both(where, measured, simulated, metric="token_latency_s", **changes):
    place = f"{where} {metric}"
    return cell(place, measured, **changes), cell(place, simulated, "simulated")


def test_pairs_have_the_error_of_each_the_median_and_the_worst():
    cells = [*both(WHERE[0], 10, 11), *both(WHERE[1], 10, 7), *both(WHERE[2], 10, 10)]
    pairs = pairs_of(book(*cells))
    assert [pair.error for pair in pairs] == pytest.approx([0.0, 0.1, -0.3])
    assert median(abs(p.error) for p in pairs) == pytest.approx(0.1)
    assert max(pairs, key=lambda p: abs(p.error)).place.row == "llama2-7b"


def test_what_is_of_another_size_or_without_limits_is_no_pair():
    tiny = both(WHERE[0], 10, 11, scale="smoke")
    unlimited = both(WHERE[1], 10, 11, backend="local")
    word = both(WHERE[2], "oom", 11)
    assert pairs_of(book(*tiny, *unlimited, *word)) == []


def test_memory_of_plain_processes_is_a_pair():
    cells = both("table2 llama2-3b on/2", 10, 11, "peak_memory_bytes", backend="local")
    assert len(pairs_of(book(*cells))) == 1


def test_a_run_that_stands_in_two_exhibits_is_one_pair():
    cells = [
        each
        for exhibit in ("table3", "table8")
        for each in (
            cell(f"{exhibit} llama2-3b accelerate ttft_s", 1.0, run_id="m"),
            cell(f"{exhibit} llama2-3b accelerate ttft_s", 1.2, "simulated", run_id="s"),
        )
    ]
    assert len(pairs_of(book(*cells))) == 1


@pytest.mark.parametrize("machine", MISSED)
@pytest.mark.parametrize("metric", PAIRED)
def test_published_runs_are_predicted(metric, machine):
    pairs = pairs_of(open_result_set(PUBLISHED / machine))
    pairs = [pair for pair in pairs if pair.is_check and pair.place.metric == metric]
    kept = [p for p in pairs if (p.place.row, p.place.column) not in MISSED[machine]]
    assert len(kept) >= 16
    assert len(kept) == len(pairs) - len(MISSED[machine])
    assert median(abs(p.error) for p in pairs) <= 0.10
    assert max(abs(p.error) for p in kept) <= 0.25


def noisy(folder, repeats, run_ids=("tpi-00000000000000aa",)):
    """Runs of so many repeats, gaps of 100, 101 ... ms; the last one is in the index."""
    store = RunStore(folder)
    for run_id in run_ids:
        record = RunRecord(
            run_id, "tpi", "ok", config=as_config({"testbed": {"backend": "docker"}})
        )
        for index in range(repeats):
            record = store.append(record, make_repeat(index, 100 + index))
    entry = Entry("table1", "llama2-3b", "on", "tpi", (), run_ids[-1])
    write_index(folder, Index("small", (entry,)))
    return read_result_set(folder)


def test_noise_floor_is_the_ratio_of_the_halves_of_the_repeats(tmp_path):
    (floor,) = noise_floors(noisy(tmp_path, 4))
    ratio = known(floor.ratio)
    assert ratio.median == pytest.approx(100.5 / 102.5)
    assert ratio.low < ratio.median < ratio.high


def test_noise_floor_is_not_known_with_too_few_repeats(tmp_path):
    (floor,) = noise_floors(noisy(tmp_path, 3))
    assert floor.ratio is None
    assert floor.reason == "not known: at least 4 repeats are needed, there are 3"


def test_a_run_that_was_measured_again_is_compared_with_the_one_before(tmp_path):
    base = "tpi-00000000000000aa"
    halves, again = noise_floors(noisy(tmp_path, 2, (base, f"{base}-2")))
    assert halves.ratio is None
    assert again.what == f"run over {base}"
    assert known(again.ratio).median == 1


def test_samples_that_changed_make_a_floor_unknown_and_nothing_else(tmp_path):
    base = "tpi-00000000000000aa"
    noise = noisy(tmp_path, 4, (base, f"{base}-2"))
    path = tmp_path / base / "samples-000.jsonl"
    path.write_bytes(path.read_bytes()[:-1])
    halves, again = noise_floors(noise)
    assert halves.ratio is not None
    assert again.ratio is None
    assert again.reason.startswith(f"not known: samples {base}/samples-000.jsonl: changed")
    path = tmp_path / f"{base}-2" / "samples-000.jsonl"
    path.write_bytes(path.read_bytes()[:-1])  # since the book was read
    assert [floor.ratio for floor in noise_floors(noise)] == [None, None]


def test_simulated_runs_have_no_noise(tmp_path):
    assert len(noise_floors(stored(tmp_path, {"tpi": 100}))) == 1
    assert noise_floors(book()) == []
