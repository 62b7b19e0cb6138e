"""What was measured beside what was known."""

import io
from dataclasses import replace

from rich.console import Console

from harness.calibrate.kernels import casts, tables, task_names
from harness.calibrate.main import busy_words
from harness.calibrate.sizes import Sizes, timed_rounds
from harness.calibrate.table import calibration_table, rows_of
from tests.harness.calibrate.tiny import TINY
from tests.harness.simulated import CALIBRATION


def text(new, old=None):
    out = io.StringIO()
    Console(file=out, width=100).print(calibration_table(new, old))
    return [" ".join(line.split()) for line in out.getvalue().splitlines()]


def test_every_cost_has_a_row():
    names = {name for name, _ in rows_of(CALIBRATION)}
    slots = set(CALIBRATION.__slots__)
    assert slots - names == {"host", "cpu_model", "cores", "schema"}


def test_figures_have_units_and_changes():
    rates = {"float32->float32": ((1, 12e9), (8, 6e9))}
    new = replace(CALIBRATION, products=rates, send_s=40e-6, element_s=2e-9, recv_s=1e-3)
    lines = text(new, CALIBRATION)
    assert "products float32->float32 at 1 8 12 6 GB/s 10 - GB/s +20%" in lines
    assert "send_s 40 µs 10 µs +300%" in lines
    assert "recv_s 1 ms 10 µs x100" in lines
    assert "element_s 2 ns 1 ns +100%" in lines
    assert "library_bytes 300 MiB 300 MiB +0%" in lines
    assert "attend float32 10 GFLOP/s 10 GFLOP/s +0%" in lines


def test_without_anything_before_there_is_no_change():
    assert "send_s 10 µs - -" in text(CALIBRATION)


def test_table_fits_a_terminal_with_all_rows():
    rows = tuple((n, 123.4e9) for n in Sizes().rows)
    wide = replace(CALIBRATION, products={"bfloat16->bfloat16": rows})
    out = io.StringIO()
    Console(file=out, width=120).print(calibration_table(wide, wide))
    assert "…" not in out.getvalue()


def test_tasks_become_tables_by_dtype_and_rows():
    figures = {name: float(i + 1) for i, name in enumerate(task_names(TINY))}
    products = tables(figures, "products")
    assert set(products) >= {"float16->float32", "bfloat16->bfloat16"}
    assert all([rows for rows, _ in table] == [1, 8] for table in products.values())
    assert set(tables(figures, "linear")) == {"float32", "bfloat16"}
    assert tables(figures, "attend")["float32"][0][0] == 1
    assert set(casts(figures)) == set(products)


def test_no_round_is_begun_late():
    assert list(timed_rounds(3, part_s=60)) == [0, 1, 2]
    assert list(timed_rounds(3, part_s=0)) == [0]  # the first always is


def test_a_busy_machine_is_called_so():
    assert busy_words(0.9, cores=2) == ""
    assert "load 12.5" in busy_words(12.5, cores=2)
    assert busy_words(None, cores=2) == ""
