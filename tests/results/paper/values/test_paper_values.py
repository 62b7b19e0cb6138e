import pytest
from hypothesis import given
from hypothesis import strategies as st

from results.paper.cell import EXHIBITS, METRICS, MISSING_REASONS
from results.paper.values.paper_values import parse_exhibit, reported_cells
from tpi.errors import ConfigError
from tpi.model_config import load_preset

GIB = 2**30
MODELS = (
    "llama2-3b", "llama2-7b", "llama2-13b", "llama2-70b", "llama3.1-8b", "llama3.1-70b", "yi-34b",
)  # fmt: skip
CELLS = {
    (c.place.exhibit, c.place.row, c.place.column, c.place.metric): c for c in reported_cells()
}
TTFT, FIRST, LATENCY, MEMORY = "ttft_s", "first_token_s", "token_latency_s", "peak_memory_bytes"


def values(exhibit, column, metric):
    """One column from top to bottom: numbers as the paper prints them, or words."""
    found = [c for key, c in CELLS.items() if (key[0], key[2], key[3]) == (exhibit, column, metric)]
    scale = GIB if METRICS[metric] == "bytes" else 1
    return [round(c.value / scale, 6) if c.value is not None else c.missing_reason for c in found]


# Typed from the paper a second time, by columns, where the files go by rows.
@pytest.mark.parametrize(
    ("exhibit", "column", "metric", "expected"),
    [
        ("table1", "off", FIRST, [2.3, 3.1, 5.1, "oom", 4.5, "oom", "oom"]),
        ("table1", "off", LATENCY, [1.0, 1.2, 1.9, "oom", 1.5, "oom", "oom"]),
        ("table1", "off", MEMORY, [2.8, 4.5, 8.1, 34.9, 8.5, 42.3, 20.4]),
        ("table1", "on", TTFT, [2.0, 3.0, 5.8, 29.4, 4.5, 32.9, 15.7]),
        ("table1", "on", LATENCY, [1.9, 2.6, 2.9, 26.1, 4.3, 29.9, 13.7]),
        ("table1", "on", MEMORY, [1.4, 1.7, 2.1, 3.1, 5.4, 11.3, 4.9]),
        ("table2", "off/2", MEMORY, [7.3, 13.7, 25.7, 130, 18.4, 137.7, 67]),
        ("table2", "off/4", MEMORY, [4.3, 7.7, 13.9, 66.6, 11.8, 74.0, 36.4]),
        ("table2", "off/6", MEMORY, [3.2, 5.5, 9.8, 46.6, 9.4, 51.1, 23.9]),
        ("table2", "on/2", MEMORY, [1.5, 2.0, 2.3, 3.7, 5.9, 10.8, 5.0]),
        ("table2", "on/4", MEMORY, [1.4, 1.8, 2.2, 3.3, 5.6, 10.5, 5.0]),
        ("table2", "on/6", MEMORY, [1.4, 1.7, 2.2, 3.3, 5.5, 11.4, 5.0]),
        ("table6", "off/2", MEMORY, [7.3, 13.7, 25.8, 129.9, 18.4, 137.8, 67]),
        ("table6", "off/4", MEMORY, [4.3, 7.7, 13.9, 66.5, 11.8, 74.0, 36.4]),
        ("table6", "off/6", MEMORY, [3.2, 5.5, 9.7, 46.7, 9.4, 51.4, 23.9]),
        ("table6", "off/8", MEMORY, [2.8, 4.5, 8.0, 35.0, 8.5, 42.5, 20.4]),
        ("table6", "on/2", MEMORY, [1.7, 2.4, 2.8, 4.5, 6.3, 10.8, 6.0]),
        ("table6", "on/4", MEMORY, [1.5, 2.1, 2.5, 3.1, 5.8, 10.5, 5.6]),
        ("table6", "on/6", MEMORY, [1.5, 1.8, 2.3, 3.1, 5.6, 11.5, 5.3]),
        ("table6", "on/8", MEMORY, [1.5, 1.8, 2.2, 3.1, 5.5, 11.4, 5.2]),
        ("table3", "transformers", TTFT, [61, 115, "oom", 133, "oom"]),
        ("table3", "transformers", LATENCY, [30, 56, "oom", 65, "oom"]),
        ("table3", "accelerate", TTFT, [24, 30, "oom", 37, "oom"]),
        ("table3", "accelerate", LATENCY, [16, 26, "oom", 31, "oom"]),
        ("table3", "accelerate-2024", TTFT, [24, 30, "oom", 37, "oom"]),
        ("table3", "accelerate-2024", LATENCY, [16, 26, "oom", 31, "oom"]),
        ("table3", "transformers-window", TTFT, [4, 13, 22, 20, 185]),
        ("table3", "transformers-window", LATENCY, [3, 8, 18, 12, 55]),
        ("table3", "tpi", TTFT, [2.5, 6, 10, 11, 33]),
        ("table3", "tpi", LATENCY, [2, 5, 9, 8, 29]),
        ("table8", "tpi", TTFT, [3, 7, 14, 13, 48]),
        ("table8", "tpi", LATENCY, [2, 6, 12, 9, 41]),
        ("table5", "layers", "count", [26, 32, 40, 80, 32, 80, 60]),
        ("table5", "params", "count", [3e9, 7e9, 13e9, 70e9, 8e9, 70e9, 34e9]),
        ("table5", "kv_heads", "count", ["not found"] * 3 + [8] * 4),
        ("table5", "required", "size_bytes", [14, 26, 50, 257, 31, 266, 130]),
        ("table7", "bandwidth", "rate_bps", [510e6, 320e6, 610e6]),
        ("table7", "latency", "delay_s", [0.005, 0.007, 0.003]),
        ("table7", "cores", "count", [8, 4, 8]),
        ("table7", "memory", "size_bytes", [8, 8, 16]),
        ("table7", "number", "count", [1, 1, 2]),
        ("figure1b", "communication", "allreduce_share", [0.02, 0.7]),
        ("figure5a", "tpi", LATENCY, ["not found", "not found", 26.1]),
        ("figure5b", "tpi", LATENCY, ["not found", "not found", 26.1]),
        ("figure5c", "tpi", LATENCY, [26.1, "not found", "not found"]),
        ("figure6", "galaxy", TTFT, ["not found"] * 4),
        ("figure6", "mp", LATENCY, ["not found"] * 3 + ["oom"]),
        ("figure1c", "tensor-parallel", MEMORY, ["not found", "not found", 12]),
    ],
)
def test_column_is_as_printed(exhibit, column, metric, expected):
    assert values(exhibit, column, metric) == expected


def test_every_exhibit_is_there_with_title_and_cells():
    assert list(dict.fromkeys(c.place.exhibit for c in reported_cells())) == list(EXHIBITS)


def test_every_cell_is_reported_with_a_source_and_places_are_unique():
    cells = reported_cells()
    assert all(c.evidence == "reported" and c.source for c in cells)
    assert len({c.place for c in cells}) == len(cells)
    assert {c.missing_reason for c in cells} <= {"", "oom", "not found"}


@pytest.mark.parametrize("exhibit", ["table1", "table2", "table5", "table6"])
def test_rows_are_the_models_by_preset(exhibit):
    rows = dict.fromkeys(key[1] for key in CELLS if key[0] == exhibit)
    assert tuple(rows) == MODELS
    assert all(load_preset(row) for row in rows)


def test_table2_ends_in_the_memory_of_table1():
    for scheduler in ("off", "on"):
        assert values("table2", f"{scheduler}/8", MEMORY) == values("table1", scheduler, MEMORY)


def test_baselines_of_three_laptops_are_those_of_four():
    for column in ("transformers", "accelerate", "accelerate-2024", "transformers-window"):
        for metric in (TTFT, LATENCY):
            assert values("table8", column, metric) == values("table3", column, metric)


@pytest.mark.parametrize("table", ["table3", "table8"])
def test_accelerate_is_the_older_version_and_says_so_beside_todays(table):
    older = "an older version, which loaded everything first"
    for metric in (TTFT, LATENCY):
        assert values(table, "accelerate", metric) == values(table, "accelerate-2024", metric)
        assert older in CELLS[table, "llama2-3b", "accelerate", metric].detail
        assert older not in CELLS[table, "llama2-3b", "accelerate-2024", metric].detail


def test_tpi_bars_of_figure6_are_table1():
    assert values("figure6", "tpi", TTFT) == values("table1", "on", TTFT)[:4]
    assert values("figure6", "tpi", LATENCY) == values("table1", "on", LATENCY)[:4]


def test_figures_without_known_heights_hold_no_number():
    for exhibit in ("figure1a", "figure3"):
        assert {c.missing_reason for key, c in CELLS.items() if key[0] == exhibit} == {"not found"}


def test_memory_falls_with_devices_without_scheduler():
    for table in ("table2", "table6"):
        columns = [values(table, f"off/{n}", MEMORY) for n in (2, 4, 6, 8)]
        assert all(list(row) == sorted(row, reverse=True) for row in zip(*columns, strict=True))


def test_doubts_of_file_column_and_cell_are_all_told():
    cell = CELLS["table1", "llama3.1-70b", "on", MEMORY]
    assert "swap" in cell.detail
    assert "behaves as GiB" in cell.detail
    assert "Klonet" in cell.detail


GOOD = """
title: T
source: Table 1
columns: [{column: "on", metric: ttft_s, unit: s}]
rows: [[llama2-3b, 2.0]]
"""


def test_small_file_gives_its_cell():
    (cell,) = parse_exhibit("table1", GOOD, "t.yaml")
    assert (cell.value, cell.source, cell.detail) == (2.0, "Table 1", "")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("ttft_s", "ttft", "metric must be"),
        ("unit: s", "unit: GiB", "unit must be s | ms"),
        ("source: Table 1", "", "source is missing"),
        ("title: T", "titel: T", "unknown key 'titel'; did you mean title?"),
        ("title: T", "title: T\nnote: x", "unknown key 'note'"),
        ('"on"', "on", "column must be a non-empty string"),
        ("2.0]", "2.0, 3.0]", "row llama2-3b has 2 values, expected 1"),
        ("2.0", "quick", "value must be a number or"),
        ("2.0", "-2.0", "value must be a number or"),
        ("2.0", ".nan", "value must be a number or"),
        ("2.0", ".inf", "value must be a number or"),
        ("2.0", "true", "rows[0][1] must be"),
        ("2.0", "{value: 2.0, source: ''}", "source must be a non-empty string"),
        ("2.0", "{value: 2.0, doubts: x}", "unknown key 'rows[0][1].doubts'"),
        ("[[llama2-3b, 2.0]]", "[[llama2-3b, 2.0], [llama2-3b, 2.0]]", "is there twice"),
        ("[[llama2-3b, 2.0]]", "{llama2-3b: [2.0]}", "rows must be a list"),
        ("[[llama2-3b, 2.0]]", "[[8, 2.0]]", "rows must be lists, a name first, got 8"),
        ("[[llama2-3b, 2.0]]", "[[", "not YAML"),
        ("[[llama2-3b, 2.0]]", "!!python/object:os.system {}", "not YAML"),
    ],
)
def test_bad_file_is_refused_in_one_line_that_names_it(old, new, message):
    assert old in GOOD
    with pytest.raises(ConfigError) as caught:
        parse_exhibit("table1", GOOD.replace(old, new), "paper/table1.yaml")
    assert message in str(caught.value)
    assert str(caught.value).startswith("paper/table1.yaml")
    assert "\n" not in str(caught.value)


def test_unknown_exhibit_is_refused():
    with pytest.raises(ConfigError, match="exhibit: got 'table9'"):
        parse_exhibit("table9", GOOD, "table9.yaml")


@given(tenths=st.integers(0, 10**6), word=st.sampled_from(MISSING_REASONS))
def test_numbers_come_back_exact_and_words_as_words(tenths, word):
    columns = GOOD.replace('"on", metric: ttft_s, unit: s', "x, metric: rate_bps, unit: Mbit/s")
    (cell,) = parse_exhibit("table7", columns.replace("2.0", str(tenths / 10)), "t")
    assert cell.value == tenths * 10**5
    (cell,) = parse_exhibit("table7", columns.replace("2.0", word), "t")
    assert (cell.missing_reason, cell.value) == (word, None)
