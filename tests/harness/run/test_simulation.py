"""Simulated plans become records like any other, marked as what they are."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from harness.progress.live import Live
from harness.run import run_key as identity
from harness.run.run_key import run_name
from harness.run.simulation import Simulation
from harness.run.weights import locate
from results.paper.cells.result_set import cells_of
from results.paper.index import Entry
from results.records.comparison_table import row_cells, row_notes, where_lines
from results.records.notes import Said
from results.records.schema import CalibratedHost, RunEnvironment
from results.records.store import RunStore
from tests.harness.simulated import CALIBRATION, MIB, FakeSimulator, plan_of
from tpi.errors import ConfigError, ResourceError

ROOT = Path(identity.__file__).parent.parent


def run_ids(plan):
    return {system.name: run_name(plan, system, locate(plan)) for system in plan.systems}


def simulation(plan, simulator=None, out=None):
    live = Live(Console(file=out or io.StringIO(), width=200))
    return Simulation(plan, live, simulator or FakeSimulator())


def test_every_system_is_simulated_once_and_kept(tmp_path):
    fake = FakeSimulator()
    plan = plan_of(tmp_path, "workload.new_tokens=5")
    done = simulation(plan, fake)
    assert done.pending == ["tpi", "transformers"]
    done.run()
    assert [run.system for run in fake.asked] == ["tpi", "transformers"]
    tpi = done.records[0]
    assert (tpi.status, tpi.check.kind, tpi.check.passed) == ("ok", "none", None)
    assert tpi.check.detail == "simulated: no token was computed"
    assert tpi.metrics is not None
    assert tpi.metrics.token_latency_s is not None
    assert (tpi.metrics.token_latency_s.median, tpi.metrics.ttft_s.median) == (1.0, 1.0)
    assert tpi.metrics.peak_memory.rss_hwm == (300 * MIB,) * 4
    assert tpi.metrics.disk_bytes_per_token == 4000
    assert tpi.notes == (Said("a note"),)
    assert (done.exit_status, done.pending) == (0, [])
    store = RunStore(tmp_path / "runs")
    assert store.read(tpi.run_id) == tpi
    assert store.repeats(tpi)[0].dilation == 1


def test_what_was_simulated_is_not_asked_again_unless_forced(tmp_path):
    plan = plan_of(tmp_path, "systems=[tpi]")
    simulation(plan).run()
    fake, out = FakeSimulator(), io.StringIO()
    again = simulation(plan, fake, out)
    assert again.pending == []
    again.run()
    assert (fake.asked, again.exit_status) == ([], 0)
    assert "simulated before" in out.getvalue()
    forced = simulation(plan.forced(), fake)
    forced.run()
    assert forced.records[0].run_id == again.records[0].run_id + "-2"


def test_memory_that_does_not_suffice_is_a_result(tmp_path):
    done = simulation(plan_of(tmp_path), FakeSimulator(too_large=("transformers",)))
    done.run()
    record = done.records[1]
    assert (record.status, record.reason) == ("oom", "rank 0: needs 300 MiB, has 1 MiB")
    assert (record.metrics, done.exit_status) == (None, 0)
    assert simulation(plan_of(tmp_path)).pending == []


def test_interrupted_simulation_keeps_what_was_done(tmp_path):
    plan = plan_of(tmp_path)
    simulation(plan_of(tmp_path, "systems=[tpi]")).run()
    stopped = simulation(plan, FakeSimulator(raises=KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    assert [record.status for record in stopped.records] == ["ok", "interrupted"]
    assert simulation(plan).pending == ["transformers"]


def test_budget_that_cannot_work_is_the_users_mistake(tmp_path):
    stopped = simulation(plan_of(tmp_path), FakeSimulator(raises=ResourceError("least 1 GiB")))
    with pytest.raises(ConfigError, match="memory_budget: least 1 GiB"):
        stopped.run()


def test_record_holds_the_calibration_and_nothing_of_this_host(tmp_path):
    done = simulation(plan_of(tmp_path, "systems=[tpi]"))
    done.run()
    record = done.records[0]
    simulator = record.calibration.simulator
    assert simulator is not None
    assert (simulator.name, simulator.host) == ("reference", "a round host, 2026-01-01")
    assert len(simulator.digest) == 64
    assert simulator.content["block_s"] == CALIBRATION.block_s
    assert record.calibration.limits[0].cpus == 3.2
    assert record.calibration.links[0].delay_s == 0.002
    host = CalibratedHost("a round host, 2026-01-01")
    assert record.environment == RunEnvironment(calibrated_host=host)


def test_table_and_cells_say_that_it_is_simulated(tmp_path):
    plan = plan_of(tmp_path, "systems=[tpi]")
    done = simulation(plan)
    done.run()
    (record,) = done.records
    cells = row_cells(record)
    assert (cells[2], cells[-1]) == ("4", "not computed")
    assert not any(
        "no token was computed" in note for note in row_notes(record)
    )  # said once, below
    assert where_lines([record]) == [
        "testbed sim (backend sim): every number is simulated, from the calibration reference"
        " (a round host, 2026-01-01); devices klonet (8 GiB, disk 700 MB/s),"
        " link klonet (2 ms, 300 Mbit/s)"
    ]
    entry = Entry("table1", "tiny", "on", "tpi", ())
    assert {(c.evidence, c.backend) for c in cells_of(entry, record, "full", None)} == {
        ("simulated", "sim")
    }


@pytest.mark.parametrize(
    "overrides",
    [
        ["window=3"],
        ["devices=5"],
        ["link.delay_ms=3"],
        ["device.memory=4GiB"],
        ["device.disk_read_mb_s=300"],
        ["dtype=bfloat16"],
        ["weights.dtype=float32"],
        ["workload.new_tokens=7"],
        ["testbed.fit=prefill"],
    ],
    ids=lambda v: v[0],
)
def test_run_id_changes_with_what_decides(tmp_path, overrides):
    assert run_ids(plan_of(tmp_path, *overrides))["tpi"] != run_ids(plan_of(tmp_path))["tpi"]


def test_run_id_changes_with_the_calibration_and_not_with_its_name(tmp_path):
    ids = run_ids(plan_of(tmp_path))
    other = replace(CALIBRATION, block_s=2e-4)
    assert run_ids(plan_of(tmp_path, calibration=other)) != ids
    assert run_ids(plan_of(tmp_path, "testbed.calibration=x.json")) == ids


@pytest.mark.parametrize("overrides", [["max_minutes=1"], ["systems=[tpi]"], ["repeats=1"]])
def test_run_id_does_not_change_with_what_decides_nothing(tmp_path, overrides):
    assert run_ids(plan_of(tmp_path, *overrides))["tpi"] == run_ids(plan_of(tmp_path))["tpi"]


def test_run_id_is_the_same_on_every_host(tmp_path, monkeypatch):
    ids = run_ids(plan_of(tmp_path))
    monkeypatch.setattr("harness.run.run_key.host_fingerprint", lambda environment: 1 / 0)
    monkeypatch.setattr("os.cpu_count", lambda: 512)
    assert run_ids(plan_of(tmp_path)) == ids
