import pytest

from results.paper.cell import KINDS
from results.paper.render.cell_format import (
    LEGEND,
    FormattedCell,
    format_cell,
    in_words,
    markdown_legend,
    markdown_of,
)
from tests.results.books import GIB, cell

TTFT = "table1 llama2-3b on ttft_s"
MEMORY = "table1 llama2-3b on peak_memory_bytes"


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (cell(TTFT, value=1.45, scale="small"), "**1.45 s**"),
        (cell(TTFT, value=1.45, low=1.4, high=1.5, n=3), "**1.45 s (1.40-1.50)**"),
        (cell(TTFT, value=1.45, dilation=8.0), "1.45 s ᵈ⁸"),
        (cell(TTFT, value=1.45, dilation=2.5), "1.45 s ᵈ²·⁵"),
        (cell(TTFT, "simulated", value=1.45, scale="smoke"), "*~1.45 s*"),
        (cell(TTFT, "simulated", value=1.45, scale="full"), "*~1.45 s*"),
        (cell(MEMORY, "computed", value=1.5 * GIB), "= 1.5 GiB"),
        (cell(MEMORY, "reported", value=137.7 * GIB), "[137.7 GiB]"),
        (cell(TTFT, "reported", value=29.4), "[29.4 s]"),
        (cell(TTFT, "reported", missing_reason="oom"), "[oom]"),
        (cell(TTFT, missing_reason="oom", scale="small"), "**oom**"),
        (cell(TTFT, missing_reason="not run", scale="smoke"), "not run"),
        (cell(TTFT, missing_reason="unusable", scale="smoke"), "unusable"),
        (cell(TTFT, "infeasible", missing_reason="infeasible"), "infeasible"),
        (cell("table7 dell cpu text", "reported", text="Apple\x1b M1"), "[Apple  M1]"),
    ],
)
def test_each_kind_of_cell_has_its_mark(made, text):
    assert markdown_of(format_cell(made)) == text


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (cell(TTFT, value=1.45, scale="small"), "**1.45 s** tiny"),
        (cell(TTFT, missing_reason="oom"), "**oom** tiny"),
        (cell(TTFT, missing_reason="not run"), "not run"),
        (cell(TTFT, "simulated", value=1.45), "*~1.45 s*"),
        (cell(TTFT, "reported", value=1.5), "[1.5 s]"),
    ],
)
def test_only_what_ran_is_marked_with_what_stood_in(made, text):
    assert markdown_of(format_cell(made, "tiny")) == text


def test_no_two_kinds_look_alike():
    shown = {markdown_of(FormattedCell(kind, "1 s", 8.0)) for kind in KINDS}
    assert len(shown) == len(KINDS) == len(LEGEND)


def test_legend_explains_every_mark_and_stand_ins():
    legend = "\n".join(markdown_legend())
    for words in (
        *LEGEND.values(),
        "what ran in the place of the paper's",
        "ᵈ⁸",
        "*~1 s*",
        "[1 s]",
    ):
        assert words in legend


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [
        ("ttft_s", 0.0123, "12.3 ms"),
        ("allreduce_share", 0.02, "2 %"),
        ("allreduce_share", 0.00403, "0.403 %"),
        ("rate_bps", 510e6, "510 Mbit/s"),
        ("count", 8192.0, "8,192"),
        ("count", 6.74e9, "6.74 bn"),
        ("size_bytes", 129 * 2.0**20, "129 MiB"),
    ],
)
def test_value_has_its_unit(metric, value, text):
    assert in_words(metric, value) == text


def test_interval_is_in_the_unit_of_the_median():
    made = cell(MEMORY, value=1000 * 2.0**20, low=900 * 2.0**20, high=1.25 * GIB, n=3)
    assert format_cell(made).text == "1000 MiB (900-1280)"
