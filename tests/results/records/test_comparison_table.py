import io

import pytest
from msgspec.structs import replace
from rich.console import Console

from results.records.comparison_table import (
    format_check,
    format_spread,
    markdown,
    rich_table,
    row_cells,
    row_notes,
    where_lines,
)
from results.records.measure import measure, summarize
from results.records.notes import Said
from results.records.schema import Check, RunRecord, Spread
from tests.results.examples import as_calibration, as_config, make_repeat

METRICS = replace(
    summarize([measure(make_repeat(i, gap)) for i, gap in enumerate((1000, 1100, 1310))]),
    disk_bytes_per_token=3.4 * 2**30,
    wire_bytes_per_token=123 * 1024.0,
)
RECORDS = [
    RunRecord(
        "a",
        "tpi",
        "ok",
        check=Check("exact", True),
        metrics=METRICS,
        notes=(Said("2 of 32 layers"),),
        config=as_config({"predicted_peak_bytes": [1, 2, 3, 4]}),
    ),
    RunRecord("b", "transformers", "infeasible", reason="needs 138 GiB, 24 GiB are free"),
    RunRecord("c", "galaxy", "wrong_output", reason="[red]\x1b[2J", check=Check("exact", False)),
]


def render(records: list[RunRecord]) -> str:
    out = io.StringIO()
    Console(width=120, file=out).print(rich_table(records, "tiny on 4 devices"))
    return out.getvalue()


def test_row_has_every_number_with_its_unit():
    assert row_cells(RECORDS[0]) == (
        "tpi", "ok", "4", "300 ms", "1.1 s (1.00-1.31)", "3", "300 MiB", "3.4 GiB", "123 KiB",
        "equal",
    )  # fmt: skip


def test_one_device_is_said_where_more_were_there():
    config = as_config({"predicted_peak_bytes": [5], "devices": 8})
    assert row_cells(replace(RECORDS[0], config=config))[2] == "1"
    assert row_cells(replace(RECORDS[1], config=config))[2] == "1"


LIMITS = [
    {"memory": gib << 30, "read_bps": mb_s * 200_000}  # a dilation of 5
    for gib, mb_s in ((8, 700), (8, 400), (16, 1000))
]
LINKS = [
    {"delay_s": ms / 200, "rate_bps": mbit * 200_000, "loss_frac": 0.0}
    for ms, mbit in ((5, 510), (7, 320), (3, 610))
]


def emulated(count, **testbed):
    """A record of a system that used so many devices."""
    config = {
        "device": {"name": "pro"},
        "link": {"name": "wifi"},
        "testbed": {"name": "home4", "backend": "docker", **testbed},
    }
    calibration = {"limits": LIMITS[:count], "links": LINKS[:count], "dilation": {"factor": 5.0}}
    return replace(RECORDS[0], config=as_config(config), calibration=as_calibration(calibration))


def test_profiles_of_a_mixed_testbed_are_named_as_far_as_they_were_used():
    roster = {f"r{i}": {"name": name} for i, name in enumerate(("pro", "air", "dell", "dell"))}
    (line,) = where_lines([emulated(3, roster=roster)])
    assert line.startswith(
        "testbed home4 (backend docker), devices pro, air, dell (8 GiB to 16 GiB, disk 400 MB/s to"
        " 1000 MB/s), link wifi (3 ms to 7 ms, 320 Mbit/s to 610 Mbit/s), dilation 5: "
    )
    (line,) = where_lines([emulated(1, roster=roster)])
    assert "devices pro (8 GiB, disk 700 MB/s), link wifi (5 ms, 510 Mbit/s), " in line


def test_equal_devices_have_one_name():
    (line,) = where_lines([emulated(1, roster={})])
    assert "devices pro (8 GiB, disk 700 MB/s), link wifi (5 ms, 510 Mbit/s), " in line


def test_shares_that_were_asked_for_are_noted():
    config = as_config({"options": {"shares": [3.0, 1.0]}})
    notes = row_notes(replace(RECORDS[0], config=config))
    assert "tpi: shares of the devices 75%, 25%" in notes
    config = as_config({"options": {"shares": None}})
    notes = row_notes(replace(RECORDS[0], config=config))
    assert not any("shares" in note for note in notes)


def test_note_says_where_the_time_goes():
    share = {"compute": 0.62, "allreduce": 0.301, "wait_weights": 0.004, "other": 0.075}
    record = replace(RECORDS[0], metrics=replace(METRICS, time_share=share))
    note = "tpi: time: computing 62 %, communicating 30 %, other 8 %"
    assert note in row_notes(record)
    assert note.partition(": ")[2] not in row_notes(RECORDS[2])


def test_failed_system_has_no_numbers_and_its_reason_in_a_note():
    cells = row_cells(RECORDS[1])
    assert cells[:2] == ("transformers", "infeasible")
    assert set(cells[2:-1]) == {"-"}
    assert row_notes(RECORDS[1]) == ["transformers: needs 138 GiB, 24 GiB are free"]


def test_table_fits_120_columns_and_nothing_is_cut():
    text = render(RECORDS)
    assert max(len(line) for line in text.splitlines()) <= 120
    wide = replace(RECORDS[0], system="transformers-window", check=Check("two_layer_bounded", True))
    assert max(len(line) for line in render([wide]).splitlines()) <= 120
    assert "…" not in text
    for word in ("1.1 s (1.00-1.31)", "wrong_output", "tpi: 2 of 32 layers", "VmHWM"):
        assert word in text


def test_words_of_a_program_are_neither_markup_nor_terminal_commands():
    assert "galaxy: [red] [2J" in render(RECORDS)
    assert "\x1b" not in markdown(RECORDS)


def test_markdown_is_aligned():
    lines = markdown(RECORDS).splitlines()
    assert len({len(line) for line in lines[:5]}) == 1
    assert lines[1].count(":|") == 7
    assert "- tpi: 2 of 32 layers" in lines


@pytest.mark.parametrize(
    ("spread", "text"),
    [
        (None, "-"),
        (Spread(0.5, 0.5, 0.5, 1), "500 ms"),
        (Spread(0.0001234, 0.0001, 0.0002, 3), "123 µs (100-200)"),
        (Spread(0.0123, 0.0121, 0.0131, 3), "12.3 ms (12.1-13.1)"),
        (Spread(1.234, 1.1, 1.3, 3), "1.23 s (1.10-1.30)"),
        (Spread(700, 650, 720, 3), "12 min (10.8-12.0)"),
    ],
)
def test_spread_in_one_unit(spread, text):
    assert format_spread(spread) == text


@pytest.mark.parametrize(
    ("check", "text"),
    [
        (Check(), "not checked"),
        (Check("exact", True, 1.0), "equal"),
        (Check("exact", False, 0.5, 15), "differ at 15"),
        (Check("exact", False), "differ"),
        (Check("bounded", True, 0.97), "in bound 97%"),
        (Check("bounded", False), "out of bound"),
        (Check("two_layer", True), "equal, 2 layers"),
        (Check("two_layer_bounded", True, 0.9, 3), "in bound, 2 layers"),
        (Check("two_layer_bounded", False), "out of bound"),
        (Check("two_layer", None, detail="no reference"), "not checked"),
    ],
)
def test_check_in_two_words(check, text):
    assert format_check(check) == text


def test_single_token_has_no_latency():
    metrics = replace(METRICS, token_latency_s=None, disk_bytes_per_token=None)
    cells = row_cells(replace(RECORDS[0], metrics=metrics))
    assert (cells[4], cells[7]) == ("-", "-")
