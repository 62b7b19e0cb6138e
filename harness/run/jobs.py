"""The systems of a plan: each one's record so far, what is still to do, and who does it.

A job continues the latest record of the same run, or begins a new one. Nothing that is finished is
done again. Every change of a record is written at once.
"""

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from msgspec import structs
from msgspec.structs import replace

from baselines.weight_formats import HF, reference_format
from harness.plan.types import Plan, SystemPlan
from harness.progress.live import Live
from harness.run.emulation import notes_of
from harness.run.run_key import calibration_content, run_name, versions_of
from harness.run.weights import WeightSet
from results.records.hashing import digest_of
from results.records.notes import DistinctLayers, Note, OwnForm, OwnSetting
from results.records.run_config import RunConfig
from results.records.schema import (
    CalibratedHost,
    Check,
    RecordError,
    Repeat,
    RunEnvironment,
    RunRecord,
)
from results.records.store import RunStore
from results.records.testbed_facts import Dilation, DiskRates, RunCalibration, SimulatorFacts
from testbed.host.environment import host_environment
from testbed.sim.calibration import Calibration
from tpi.decode import convert
from tpi.errors import EXIT_OK, ConfigError, map_errors

EXIT_FAILED = 1
_GOOD = ("ok", "infeasible", "unavailable")


@dataclass
class Job:
    """One system: its record so far, and how many repeats are still to do."""

    system: SystemPlan
    record: RunRecord
    todo: int
    is_kept: bool = False


class Jobs:
    """All systems of a plan, in the order in which they were asked for."""

    def __init__(self, plan: Plan, weights: WeightSet) -> None:
        self.plan = plan
        self._weights = weights
        self._store = RunStore(_writable_folder(Path(plan.config.results_dir)))
        self._jobs = [self._open(system) for system in plan.systems]

    def __iter__(self) -> Iterator[Job]:
        return iter(self._jobs)

    @property
    def pending(self) -> list[Job]:
        """Those that have repeats to do."""
        return [job for job in self._jobs if job.todo]

    def report_kept(self, live: Live) -> None:
        """Tell the user what was there already."""
        verb, again = "measured", "measures again"
        if self.plan.is_simulated:
            verb, again = "simulated", "does it again"
        for job in self._jobs:
            if not job.is_kept or job.record.status == "infeasible":
                continue
            record, where = job.record, self._store.folder(job.record.run_id)
            text = f"repeats there: {record.num_ok}, to go: {job.todo}: {where}"
            if not job.todo:
                how = f"{verb} before" if record.status == "ok" else f"ended {record.status} before"
                text = f"{how}, see {where}; force=true {again}"
            live.line(f"{record.system}: {text}")

    def append(self, job: Job, record: RunRecord, repeat: Repeat) -> None:
        """Keep one more repeat; a failure ends the job."""
        job.record = self._store.append(record, repeat)
        job.todo = job.todo - 1 if repeat.status == "ok" else 0

    def enter_check(self, job: Job, check: Check) -> None:
        """Note a check that was made before any repeat; unless it passed, the job ends."""
        job.record = replace(job.record, check=check)
        if not check.passed:
            status = "invalid" if check.is_broken else "wrong_output"
            failed = replace(job.record, status=status, reason=check.detail, metrics=None)
            job.record, job.todo = self._store.write(failed), 0

    def interrupt(self) -> None:
        """Write down that the user stopped what was still to do."""
        for job in self.pending:
            reason = f"stopped by the user, repeats to go: {job.todo}"
            job.record = self._store.write(replace(job.record, status="interrupted", reason=reason))

    def _open(self, system: SystemPlan) -> Job:
        config = self.plan.config
        base_id = run_name(self.plan, system, self._weights)
        old = None if config.force else self._store.latest(base_id)
        if old is not None and (kept := self._kept(system, old)):
            return kept
        record = new_record(self.plan, system, self._store.next_id(base_id))
        if system.refusal is None:
            return Job(system, record, config.repeats)
        refused = replace(record, status="infeasible", reason=system.refusal, notes=())
        if old is None:
            refused = self._store.write(refused)
        # Else it is only shown: the record that was begun stays the latest, to be continued later.
        return Job(system, refused, 0)

    def _kept(self, system: SystemPlan, old: RunRecord) -> Job | None:
        """The record that is there, if it is used: a measurement rather than a refusal."""
        repeats = self.plan.config.repeats
        if old.status == "infeasible":
            return None if system.refusal is None else Job(system, old, 0, is_kept=True)
        if old.is_finished(repeats):
            if old.status == "interrupted":  # fewer repeats are asked for than then
                old = self._store.write(replace(old, status="ok", reason=""))
            return Job(system, old, 0, is_kept=True)
        if system.refusal is not None or old.status == "invalid":
            return None
        return Job(system, old, repeats - old.num_ok, is_kept=True)


class Executor(Protocol):
    """What executes a plan: real processes (`Experiment`) or the simulator (`Simulation`)."""

    jobs: Jobs
    _live: Live

    @property
    def pending(self) -> list[str]:
        """Systems that have something to do."""
        return [job.system.name for job in self.jobs.pending]

    @property
    def records(self) -> list[RunRecord]:
        """The record of every system, in the order in which they were asked for."""
        return [job.record for job in self.jobs]

    @property
    def exit_status(self) -> int:
        """0 if all ended ok, or were computed or seen not to fit their device; else 1."""
        # A device that reaches its own limit is a result.
        good = (*_GOOD, "oom") if self.jobs.plan.has_limits else _GOOD
        return EXIT_OK if all(record.status in good for record in self.records) else EXIT_FAILED

    @property
    def to_write(self) -> int:
        """Bytes of weights that will be written; none if nothing is left to do."""
        return 0

    def run(self) -> None:
        """Do everything that is left to do.

        Raises:
            KeyboardInterrupt: After all programs ended and unfinished records say `interrupted`.
            TpiError: Weights or devices could not be made.
        """
        self.jobs.report_kept(self._live)
        try:
            if self.pending:
                self._execute()
        except KeyboardInterrupt:
            self.jobs.interrupt()
            raise

    def _execute(self) -> None: ...


def new_record(plan: Plan, system: SystemPlan, run_id: str) -> RunRecord:
    """The record of a system before its first repeat."""
    simulated = None if plan.calibration is None else _simulated(plan, plan.calibration)
    environment, calibration, asked = simulated or _measured(plan, system)
    axes, options = asdict(plan.config), structs.asdict(system.options)
    del axes["systems"]
    peaks = {"predicted_peak_bytes": system.cost.peak_bytes}
    config = {**axes, "options": options, **peaks, **asked}
    limited = system.devices if plan.has_limits else ()
    limits = tuple(device.limits for device in limited)
    links = tuple(device.link for device in limited)
    return RunRecord(
        run_id=run_id,
        system=system.name,
        status="interrupted",
        reason="no repeat has ended yet",
        check=Check(detail=plan.check_reason if plan.is_simulated else ""),
        config=convert(config, RunConfig, "run record", RecordError),
        environment=environment,
        calibration=replace(calibration, limits=limits, links=links),
        notes=(*plan.cuts, *_own_ways(plan, system)),
    )


_Basis = tuple[RunEnvironment, RunCalibration, Mapping[str, object]]


def _simulated(plan: Plan, calibration: Calibration) -> _Basis:
    """The host that the costs were measured on; numbers do not depend on this machine."""
    host = CalibratedHost(calibration.host, calibration.cpu_model, calibration.cores)
    content, name = calibration_content(calibration), plan.config.testbed.calibration
    simulator = SimulatorFacts(name, calibration.host, digest_of(content), content)
    environment = RunEnvironment(calibrated_host=host)
    return environment, RunCalibration(simulator=simulator), {"prompt_tokens": plan.prompt_tokens}


def _measured(plan: Plan, system: SystemPlan) -> _Basis:
    """Facts of this host, and what is enforced on it."""
    facts = host_environment(Path(plan.config.weights.dir))
    environment = RunEnvironment(
        host=replace(facts, versions=versions_of(system.name)),
        testbed_notes=tuple(notes_of(plan, system)),
    )
    disk = DiskRates(plan.host.read_bps, plan.host.write_bps)
    dilation = Dilation(**asdict(plan.dilation))
    planned = {
        "prompt_ids": plan.prompt_ids,
        "warmup_tokens": plan.warmup_tokens,
        "predicted_step_s": system.cost.step_s,
    }
    return environment, RunCalibration(disk_probe=disk, dilation=dilation), planned


def _own_ways(plan: Plan, system: SystemPlan) -> list[Note]:
    """How a system was asked to differ from the whole model and from the others."""
    notes: list[Note] = []
    if plan.distinct_layers < plan.model.num_layers:
        notes.append(DistinctLayers(plan.distinct_layers, plan.model.num_layers))
    dtype = system.options.compute(plan.config.dtype, 1).dtype
    if dtype != plan.config.dtype:
        notes.append(OwnSetting("dtype", dtype, plan.config.dtype))
    threads, asked = system.threads[0], plan.devices[0].limits.threads
    if threads != asked:
        notes.append(OwnSetting("threads", threads, asked))
    if reference_format(system.form) != HF:
        notes.append(OwnForm(system.form.words))
    return notes


def _writable_folder(folder: Path) -> Path:
    """The folder of records, made if need be; a problem is found before hours are spent."""
    with map_errors({OSError: ConfigError}, f"results_dir {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
