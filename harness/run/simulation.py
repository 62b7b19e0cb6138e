"""Carries out a simulated plan: asks the simulator, keeps its answers as run records.

It is to simulated devices what `Experiment` is to real ones, and has the same face: `pending`,
`run`, `records`, `exit_status`. Nothing of this host goes into a record but the file it lies in.
The simulator has no chance in it, so one repeat is all there is. Read `Simulation.run` first.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from baselines.simulate import simulate
from harness.plan.sim_plan import SimPlan, limits_of
from harness.progress.live import Live
from harness.run.jobs import recorded_config, writable_folder
from harness.run.launch import MEASURED_ID
from harness.run.run_key import simulated_decisive
from results.records.hashing import digest_of, make_run_id
from results.records.notes import Said
from results.records.schema import (
    CalibratedHost,
    Check,
    PeakMemory,
    Repeat,
    RepeatFacts,
    RunEnvironment,
    RunRecord,
)
from results.records.store import RunStore
from results.records.testbed_facts import RunCalibration, SimulatorFacts
from testbed.sim.base import SimOutcome, SimRun
from testbed.sim.calibration import Calibration
from tpi.errors import EXIT_OK, ConfigError, ResourceError, map_errors
from tpi.units import format_seconds

EXIT_FAILED = 1
_GOOD = ("ok", "oom")  # that a device is too small is a result
Simulator = Callable[[SimRun, Calibration], SimOutcome]


class Simulation:
    """One simulated plan and its records."""

    def __init__(self, plan: SimPlan, live: Live, simulator: Simulator = simulate) -> None:
        self._plan = plan
        self._live = live
        self._simulator = simulator
        self._store = RunStore(writable_folder(Path(plan.config.results_dir)))
        self._kept: dict[str, RunRecord] = {}
        self._done: dict[str, RunRecord] = {}
        for system, base_id in run_ids(plan).items():
            old = None if plan.config.force else self._store.latest(base_id)
            if old is not None and old.is_finished(1):
                self._kept[system] = old

    @property
    def pending(self) -> list[str]:
        """Systems that are not simulated yet."""
        return [r.system for r in self._plan.runs if r.system not in {**self._kept, **self._done}]

    @property
    def records(self) -> list[RunRecord]:
        """The record of every system that has one, in the order in which they were asked for."""
        found = {**self._kept, **self._done}
        return [found[run.system] for run in self._plan.runs if run.system in found]

    @property
    def exit_status(self) -> int:
        """0 if all ended ok, or were found not to fit their device; else 1."""
        return EXIT_OK if all(r.status in _GOOD for r in self.records) else EXIT_FAILED

    def run(self) -> None:
        """Simulate everything that is left.

        Raises:
            KeyboardInterrupt: In the middle of a system, of which nothing is kept then.
            ConfigError: A memory budget that cannot work.
        """
        for system, record in self._kept.items():
            where = self._store.folder(record.run_id)
            self._live.line(f"{system}: simulated before, see {where}; force=true does it again")
        ids = run_ids(self._plan)
        for run in self._plan.runs:
            if run.system in self.pending:
                self._done[run.system] = self._simulate(run, ids[run.system])

    def _simulate(self, run: SimRun, base_id: str) -> RunRecord:
        devices = "1 device" if run.world_size == 1 else f"{run.world_size} devices"
        with (
            self._live.waiting(f"simulating {run.system} on {devices}"),
            map_errors({ResourceError: ConfigError}, "memory_budget"),
        ):
            outcome = self._simulator(run, self._plan.calibration)
        record = new_record(self._plan, run, self._store.next_id(base_id), outcome)
        record = self._store.append(record, repeat_of(run, outcome))
        self._live.line(f"{run.system}: {_words(record)}")
        return record


def _words(record: RunRecord) -> str:
    if record.metrics is None:
        return f"{record.status}: {record.reason}"
    text = f"simulated, TTFT {format_seconds(record.metrics.ttft_s.median)}"
    latency = record.metrics.token_latency_s
    return text if latency is None else f"{text}, {format_seconds(latency.median)}/token"


def run_ids(plan: SimPlan) -> dict[str, str]:
    """What the run of each system is called."""
    digest = digest_of(_content(plan.calibration))
    return {
        run.system: make_run_id(run.system, simulated_decisive(run, digest)) for run in plan.runs
    }


def repeat_of(run: SimRun, outcome: SimOutcome) -> Repeat:
    """What the simulator answered, as if it had been measured."""
    return Repeat(
        index=0,
        request_id=MEASURED_ID,
        status=outcome.status,
        reason=outcome.reason,
        start_ns=(0,) * run.world_size,
        peak_memory=PeakMemory(
            rss_hwm=outcome.rss_hwm,
            anon_peak=outcome.anon_peak,
            cgroup_peak=(None,) * run.world_size,
        ),
        events=tuple(replace(event, rank=rank) for rank, event in outcome.events),
        facts=RepeatFacts(simulated=True),
    )


def new_record(plan: SimPlan, run: SimRun, run_id: str, outcome: SimOutcome) -> RunRecord:
    """The record of a simulated system, before its one repeat is added."""
    return RunRecord(
        run_id=run_id,
        system=run.system,
        status="interrupted",
        reason="no repeat has ended yet",
        check=Check(detail="simulated: no token was computed"),
        config=recorded_config(
            replace(plan.config, repeats=1),
            run.system,
            prompt_tokens=run.prompt_tokens,
            predicted_peak_bytes=outcome.rss_hwm,
        ),
        # Of what the costs were measured on; this machine has no part in the numbers.
        environment=RunEnvironment(calibrated_host=_calibrated_host(plan.calibration)),
        calibration=_calibration(plan, run),
        notes=tuple(Said(note) for note in outcome.notes),
    )


def _calibrated_host(calibration: Calibration) -> CalibratedHost:
    return CalibratedHost(calibration.host, calibration.cpu_model, calibration.cores)


def _calibration(plan: SimPlan, run: SimRun) -> RunCalibration:
    content = _content(plan.calibration)
    simulator = SimulatorFacts(
        plan.calibration_name, plan.calibration.host, digest_of(content), content
    )
    return RunCalibration(
        simulator=simulator,
        limits=tuple(limits_of(device) for device in run.devices),
        links=tuple(run.links),
    )


def _content(calibration: Calibration) -> dict[str, object]:
    content: dict[str, object] = json.loads(json.dumps(asdict(calibration)))
    return content
