import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from results.paper.cell import EXHIBITS, KINDS
from results.paper.render.cell_format import FormattedCell
from results.paper.render.latex import escape, latex, latex_of
from results.paper.render.layouts import MODELS, label_of
from tests.results.books import book, cell, every_kind


@pytest.mark.parametrize("exhibit", [name for name in EXHIBITS if name.startswith("table")])
def test_fragment_is_balanced_ascii_and_every_row_has_all_columns(exhibit):
    text = latex(every_kind(), exhibit)
    assert text.isascii()
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 1
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == text.count(r"\begin{tabular}")
    for spec, body in re.findall(r"\\begin\{tabular\}\{(l+)\}(.*?)\\end\{tabular\}", text, re.S):
        rows = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert rows
        for row in rows:
            assert len(re.findall(r"(?<!\\)&", row)) == len(spec) - 1


def test_table_has_every_model_and_every_mark():
    text = latex(every_kind(), "table1")
    for words in (
        *map(label_of, MODELS), "{[2 s]}", r"\textbf{1.25 s (1.20-1.30)}", r"\textit{$\sim$1.5 s}",
        "500 ms$^{d8}$", r"$=$\,3 GiB", "not run", "{[not found]}", "needs 257 GiB of disk",
    ):  # fmt: skip
        assert words in text
    assert r"\textsc{smoke}" in latex(every_kind("smoke"), "table1")


def test_no_two_kinds_look_alike():
    assert len({latex_of(FormattedCell(kind, "1 s", 8.0)) for kind in KINDS}) == len(KINDS)


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("70 %", r"70 \%"),
        ("a_b & {c} #1 $x$ ^~", r"a\_b \& \{c\} \#1 \$x\$ \textasciicircum{}\textasciitilde{}"),
        (r"\input{x}", r"\textbackslash{}input\{x\}"),
        ("12 µs", r"12 $\mu$s"),
        ("naïve 雪", "naive [U+96EA]"),
    ],
)
def test_escape(text, escaped):
    assert escape(text) == escaped


@given(st.text())
def test_escaped_text_holds_no_command_and_no_open_brace(text):
    escaped = escape(text)
    assert escaped.isascii()
    bare = re.sub(
        r"\\(text(backslash|asciicircum|asciitilde|less|greater|bar)\{\}|[{}$&#%_])|"
        r"\$\\(mu|gamma|tau|times|cdot|le|ge|lfloor|rfloor|lceil|rceil)\$|\$-\$",
        "",
        escaped,
    )
    assert not set(bare) & set("\\{}$&#%_^~")


def test_what_a_record_says_is_escaped():
    made = cell(
        "table1 yi-34b on ttft_s", missing_reason="failed", detail=r"rank_1: 100% \end{table}"
    )
    assert r"rank\_1: 100\% \textbackslash{}end\{table\}" in latex(book(made), "table1")
