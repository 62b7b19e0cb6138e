import csv
import io

from results.paper.cell import METRICS, Cell, Place
from results.paper.render.csv import COLUMNS, cells_csv
from results.paper.render.sections import shown_cells
from tests.results.books import cell, every_kind


def parse(text):
    return [_cell(line) for line in csv.DictReader(io.StringIO(text))]


def _cell(line):
    place = Place(*(line[name] for name in ("exhibit", "row", "column", "metric")))
    assert line["unit"] == METRICS[place.metric]

    def number(name):
        return float(line[name]) if line[name] else None

    is_text = place.metric == "text"
    return Cell(
        place, line["evidence"], None if is_text else number("value"), number("low"),
        number("high"), int(line["n"]), line["word"], line["value"] if is_text else "",
        line["scale"], line["backend"], float(line["dilation"]), line["run_id"], line["source"],
        line["detail"],
    )  # fmt: skip


def test_every_field_reads_back():
    cells = [
        *shown_cells(every_kind(), "table1"),
        cell("table7 dell cpu text", "reported", text='Intel, "i7"', source="Table 7"),
        cell("table1 yi-34b on ttft_s", value=1 / 3, low=0.1, high=2 / 3, detail="two\nlines; a,b"),
    ]
    assert parse(cells_csv(cells, every_kind())) == cells


def test_header_is_what_was_promised():
    assert cells_csv([], every_kind()) == ",".join(COLUMNS) + "\n"
    assert len(COLUMNS) == 18


def test_each_cell_is_one_line_words_too():
    cells = shown_cells(every_kind(), "table1")
    assert len(cells_csv(cells, every_kind()).splitlines()) == len(cells) + 1
    assert any(c.missing_reason == "not run" for c in cells)
