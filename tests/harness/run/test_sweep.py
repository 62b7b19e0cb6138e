"""What a sweep shows: which columns lead, what is left out, which plot is drawn."""

import pytest
from matplotlib.figure import Figure

from harness.run.sweep import Part, swept_names
from harness.run.sweep_plot import draw, number_of, series_of, x_axis
from harness.run.sweep_table import Line, csv_text, table_of
from results.records.schema import Metrics, PeakMemory, RunRecord, Spread


def record(system, latency_s, status="ok"):
    if status != "ok":
        return RunRecord("", system, status, "too large")
    spread = Spread(latency_s, latency_s, latency_s, 1)
    metrics = Metrics(
        load_s=spread, verify_s=0.0, ttft_s=spread, token_latency_s=spread,
        peak_memory=PeakMemory((1 << 30, 3 << 30), (None, None), (None, None)),
        disk_bytes_per_token=4.0, wire_bytes_per_token=None, messages_per_token=2.0,
        time_share={},
    )  # fmt: skip
    return RunRecord(f"{system}-1", system, "ok", metrics=metrics)


LINES = [
    Line(("2", "star"), record("tpi", 1.0)),
    Line(("2", "star"), record("galaxy", 4.0)),
    Line(("4", "star"), record("tpi", 0.5)),
    Line(("4", "star"), record("galaxy", 0.0, "oom")),
]
NAMES = ("devices", "allreduce")


def part(**overrides):
    return Part(0, overrides, "runs", (), 0, "")


def test_swept_options_are_those_that_differ():
    parts = [part(model="tiny", devices="2", window="1"), part(model="tiny", devices="4")]
    assert swept_names(parts) == ("devices", "window")


def test_table_leads_with_what_was_swept_and_leaves_out_what_is_the_same():
    titles = [str(column.header) for column in table_of(NAMES, LINES).columns]
    assert titles[:3] == ["devices", "allreduce", "system"]
    assert "wire/tok" not in titles
    assert "status" in titles
    assert "status" not in [str(c.header) for c in table_of(NAMES, LINES[:2]).columns]


def test_csv_has_plain_numbers():
    header, first, *_, last = csv_text(NAMES, LINES).splitlines()
    named = dict(zip(header.split(","), first.split(","), strict=True))
    assert (named["devices"], named["token_latency_s"]) == ("2", "1.0")
    assert named["peak_memory_bytes"] == str(3 << 30)
    assert last.endswith("oom,,,,,,,,,,,too large")


@pytest.mark.parametrize(
    ("text", "number"), [("4", 4.0), ("0.5", 0.5), ("2GiB", 2.0), ("512MiB", 0.5), ("star", None)]
)
def test_sizes_are_numbers_too(text, number):
    assert number_of(text) == number


def test_line_for_each_system_over_the_numeric_option():
    assert x_axis(NAMES, LINES) == 0
    assert list(series_of(NAMES, LINES, 0)) == ["tpi, allreduce=star", "galaxy, allreduce=star"]
    assert x_axis(("allreduce",), [Line(("star",), record("tpi", 1.0))]) is None


@pytest.mark.parametrize(("names", "keep"), [(NAMES, (0, 1)), (("allreduce",), (1,))])
def test_plot_says_what_is_on_its_axes(tmp_path, monkeypatch, names, keep):
    figures = []
    save = Figure.savefig

    def kept(figure, *args, **options):
        figures.append(figure)
        save(figure, *args, **options)

    monkeypatch.setattr(Figure, "savefig", kept)
    lines = [Line(tuple(line.swept[i] for i in keep), line.record) for line in LINES]
    draw(names, lines, tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
    labels = [axes.get_ylabel() for axes in figures[0].axes]
    assert labels[0] == "token latency (s)"
    assert labels[2] == "peak memory of a device (GiB)"
    expected = "devices (number)" if keep == (0, 1) else "allreduce"
    assert figures[0].axes[0].get_xlabel() == expected
