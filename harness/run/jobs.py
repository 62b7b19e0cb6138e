"""The systems of a plan on their way: each one's record so far, and what is still to do.

A job goes on with the latest record of the same run, or begins a new one; nothing finished is done
again. Every change of a record is written at once. Read `Jobs.__init__` and `_open` first.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from msgspec.structs import replace

from baselines.weight_formats import HF, reference_format
from harness.config.config import Config
from harness.plan.types import Plan, SystemPlan
from harness.progress.live import Live
from harness.run.emulation import notes_of
from harness.run.run_key import decisive, versions_of
from harness.run.weights import WeightSet
from results.records.hashing import make_run_id
from results.records.notes import DistinctLayers, Note, OwnForm, OwnSetting
from results.records.run_config import RunConfig
from results.records.schema import Check, RecordError, Repeat, RunEnvironment, RunRecord
from results.records.store import RunStore
from results.records.testbed_facts import Dilation, DiskRates, RunCalibration
from testbed.host.environment import HostFacts
from testbed.host.rates import Host
from tpi.decode import convert
from tpi.errors import ConfigError, map_errors


@dataclass
class Job:
    """One system: its record so far, and how many repeats are still to do."""

    system: SystemPlan
    record: RunRecord
    todo: int
    is_kept: bool = False


class Jobs:
    """All systems of a plan, in the order in which they were asked for."""

    def __init__(
        self,
        plan: Plan,
        host: Host,
        weights: WeightSet,
        prompt_ids: tuple[int, ...],
        facts: HostFacts,
    ) -> None:
        self._plan = plan
        self._host = host
        self._weights = weights
        self._prompt_ids = prompt_ids
        self._facts = facts
        self._store = RunStore(writable_folder(Path(plan.config.results_dir)))
        self._jobs = [self._open(system) for system in plan.systems]

    def __iter__(self) -> Iterator[Job]:
        return iter(self._jobs)

    @property
    def pending(self) -> list[Job]:
        """Those that have repeats to do."""
        return [job for job in self._jobs if job.todo]

    def say_what_is_kept(self, live: Live) -> None:
        """Tell the user what was there already."""
        for job in self._jobs:
            if not job.is_kept or job.record.status == "infeasible":
                continue
            record, where = job.record, self._store.folder(job.record.run_id)
            text = f"repeats there: {record.num_ok}, to go: {job.todo}: {where}"
            if not job.todo:
                ok = record.status == "ok"
                how = "measured before" if ok else f"ended {record.status} before"
                text = f"{how}, see {where}; force=true measures again"
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
        config = self._plan.config
        decides = decisive(self._plan, system, self._weights, self._prompt_ids, self._facts)
        base_id = make_run_id(system.name, decides)
        old = None if config.force else self._store.latest(base_id)
        if old is not None and (kept := self._kept(system, old)):
            return kept
        record = self._new_record(system, self._store.next_id(base_id))
        if system.refusal is None:
            return Job(system, record, config.repeats)
        refused = replace(record, status="infeasible", reason=system.refusal, notes=())
        if old is None:
            refused = self._store.write(refused)
        # Else it is only shown: what was begun stays the latest, to go on with another time.
        return Job(system, refused, 0)

    def _kept(self, system: SystemPlan, old: RunRecord) -> Job | None:
        """What is there already, if that is used: a measurement rather than a refusal."""
        repeats = self._plan.config.repeats
        if old.status == "infeasible":
            return None if system.refusal is None else Job(system, old, 0, is_kept=True)
        if old.is_finished(repeats):
            if old.status == "interrupted":  # fewer repeats are asked for than then
                old = self._store.write(replace(old, status="ok", reason=""))
            return Job(system, old, 0, is_kept=True)
        if system.refusal is not None or old.status == "invalid":
            return None
        return Job(system, old, repeats - old.num_ok, is_kept=True)

    def _new_record(self, system: SystemPlan, run_id: str) -> RunRecord:
        plan, host = self._plan, self._host
        notes: list[Note] = list(plan.cuts)
        if plan.distinct_layers < plan.model.num_layers:
            notes.append(DistinctLayers(plan.distinct_layers, plan.model.num_layers))
        notes += _own_ways(plan, system)
        return RunRecord(
            run_id=run_id,
            system=system.name,
            status="interrupted",
            reason="no repeat has ended yet",
            config=recorded_config(
                plan.config,
                system.name,
                prompt_ids=self._prompt_ids,
                warmup_tokens=plan.warmup_tokens,
                predicted_peak_bytes=system.cost.peak_bytes,
                predicted_step_s=system.cost.step_s,
            ),
            environment=RunEnvironment(
                host=replace(self._facts, versions=versions_of(system.name)),
                testbed_notes=tuple(notes_of(plan, system)),
            ),
            calibration=_calibration(plan, system, DiskRates(host.read_bps, host.write_bps)),
            notes=tuple(notes),
        )


def recorded_config(config: Config, system: str, **planned: object) -> RunConfig:
    """The configuration of one system as its record keeps it, with what the plan made of it."""
    axes = asdict(config)
    options = axes.pop("systems")[system]
    return convert({**axes, "options": options, **planned}, RunConfig, "run record", RecordError)


def _calibration(plan: Plan, system: SystemPlan, disk: DiskRates) -> RunCalibration:
    """What is enforced on the devices, and how it was computed."""
    if not plan.is_emulated:
        return RunCalibration(disk_probe=disk)
    return RunCalibration(
        disk_probe=disk,
        dilation=Dilation(**asdict(plan.dilation)),
        limits=tuple(plan.limits[: system.world_size]),
        links=tuple(plan.links[: system.world_size]),
    )


def _own_ways(plan: Plan, system: SystemPlan) -> list[Note]:
    """In what a system differs from the others of its run, if it was asked to."""
    asked: dict[str, int | str] = {"dtype": plan.config.dtype, "threads": plan.limits[0].threads}
    own: dict[str, int | str] = {
        name: getattr(system.options, name, None) or value for name, value in asked.items()
    }
    notes: list[Note] = [
        OwnSetting(name, own[name], value) for name, value in asked.items() if own[name] != value
    ]
    if reference_format(system.form) != HF:
        notes.append(OwnForm(system.form.words))
    return notes


def writable_folder(folder: Path) -> Path:
    """The folder of records, made if need be; found out before hours are spent on one."""
    with map_errors({OSError: ConfigError}, f"results_dir {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
