"""Carries out a plan: weights, repeats, checks, records. The one place that joins the parts.

Systems alternate (A B, B A, ...) so that a slow drift of the machine hits all alike; every repeat
gets fresh devices and a warm-up request before the measured one. A record is written after every
repeat, so that whatever stops the program loses at most one. Read `Experiment.run` first.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from harness import weights as weight_sets
from harness.host import Host
from harness.identity import decisive
from harness.launching import MEASURED_ID, PROGRAMS, make_launch, make_testbed
from harness.live import Live
from harness.plan import Plan, SystemPlan
from harness.reference import Reference
from harness.runner import run_repeat
from harness.two_layers import check_two_layers
from harness.verdict import checked_status, judge
from results.environment import host_environment
from results.identity import make_run_id
from results.measure import measure
from results.schema import Check, Repeat, RunRecord
from results.store import RunStore
from testbed.local import NOTES
from tpi.errors import EXIT_OK, ConfigError, map_errors
from tpi.units import format_seconds

EXIT_FAILED = 1
_GOOD = ("ok", "infeasible", "unavailable")
# A disk's own rate is worth knowing beside a run that streams at least this much per token.
_STREAMING_BYTES = 256 << 20


@dataclass
class _Job:
    """One system on its way: its record so far, and how many repeats are still to do."""

    system: SystemPlan
    record: RunRecord
    todo: int
    is_kept: bool = False


class Experiment:
    """One plan, its weights and its records."""

    def __init__(
        self,
        plan: Plan,
        host: Host,
        prompt_ids: tuple[int, ...],
        live: Live,
        programs: Mapping[str, tuple[str, ...]] = PROGRAMS,
    ) -> None:
        self._plan = plan
        self._host = host
        self._prompt_ids = prompt_ids
        self._live = live
        self._programs = programs
        self._store = RunStore(_writable(Path(plan.config.results_dir)))
        self._environment = host_environment(Path(plan.config.weights.dir))
        self._weights = weight_sets.locate(plan)
        self._jobs = [self._open_job(system) for system in plan.systems]

    @property
    def pending(self) -> list[str]:
        """Systems that have repeats to do."""
        return [job.system.name for job in self._jobs if job.todo]

    @property
    def to_write(self) -> int:
        """Bytes of weights that will be written; none if nothing is left to run."""
        return self._weights.to_write if self.pending else 0

    @property
    def records(self) -> list[RunRecord]:
        """The record of every system, in the order in which they were asked for."""
        return [job.record for job in self._jobs]

    @property
    def exit_status(self) -> int:
        """0 if every system ended ok, or was computed not to fit; else 1."""
        return EXIT_OK if all(r.status in _GOOD for r in self.records) else EXIT_FAILED

    def run(self) -> None:
        """Do everything that is left to do.

        Raises:
            KeyboardInterrupt: After all programs ended and unfinished records say `interrupted`.
            TpiError: Weights or devices could not be made.
        """
        for job in self._jobs:
            self._say_what_is_kept(job)
        if not self.pending:
            return
        try:
            weight_sets.check_space(self._plan, self._weights, self._host.free_disk)
            if self._plan.check == "two_layer":
                self._check_two_layers()
            if self.pending:
                weight_sets.obtain(self._plan, self._weights, self._live)
                self._run_repeats()
        except KeyboardInterrupt:
            self._record_interrupt()
            raise

    # --- what there is already -------------------------------------------------------------

    def _open_job(self, system: SystemPlan) -> _Job:
        config = self._plan.config
        decides = decisive(self._plan, system, self._weights, self._prompt_ids, self._environment)
        base_id = make_run_id(system.name, decides)
        old = None if config.force else self._store.latest(base_id)
        if old is not None and (kept := self._kept_job(system, old)):
            return kept
        record = self._new_record(system, self._store.next_id(base_id))
        if system.refusal is None:
            return _Job(system, record, config.repeats)
        refused = replace(record, status="infeasible", reason=system.refusal, notes=())
        if old is None:
            refused = self._store.write(refused)
        # Else it is only shown: what was begun stays the latest, to go on with another time.
        return _Job(system, refused, 0)

    def _kept_job(self, system: SystemPlan, old: RunRecord) -> _Job | None:
        """What is there already, if that is used: a measurement rather than a refusal."""
        repeats = self._plan.config.repeats
        if old.status == "infeasible":
            return None if system.refusal is None else _Job(system, old, 0, is_kept=True)
        if old.is_finished(repeats):
            if old.status == "interrupted":  # fewer repeats are asked for than then
                old = self._store.write(replace(old, status="ok", reason=""))
            return _Job(system, old, 0, is_kept=True)
        if system.refusal is not None or old.check.is_broken:
            return None
        return _Job(system, old, repeats - old.num_ok, is_kept=True)

    def _new_record(self, system: SystemPlan, run_id: str) -> RunRecord:
        plan = self._plan
        notes = list(plan.cuts)
        if plan.distinct_layers < plan.model.num_layers:
            notes.append(f"distinct_layers: {plan.distinct_layers} of {plan.model.num_layers}")
        rates = {"read_bps": self._host.read_bps, "write_bps": self._host.write_bps}
        return RunRecord(
            run_id=run_id,
            system=system.name,
            status="interrupted",
            reason="no repeat has ended yet",
            config={
                **asdict(plan.config),
                "systems": {system.name: asdict(system.options)},
                "prompt_ids": list(self._prompt_ids),
                "warmup_tokens": plan.warmup_tokens,
                "predicted_peak_bytes": list(system.cost.peak_bytes),
                "predicted_step_s": system.cost.step_s,
            },
            environment={**self._environment, "testbed_notes": list(NOTES)},
            calibration={"disk_probe": rates},
            notes=tuple(notes),
        )

    def _say_what_is_kept(self, job: _Job) -> None:
        record = job.record
        if not job.is_kept or record.status == "infeasible":
            return
        where = self._store.folder(record.run_id)
        if job.todo:
            self._live.line(
                f"{record.system}: repeats there: {record.num_ok}, to go: {job.todo}: {where}"
            )
        else:
            how = "measured before" if record.status == "ok" else f"ended {record.status} before"
            self._live.line(f"{record.system}: {how}, see {where}; force=true measures again")

    # --- repeats ---------------------------------------------------------------------------

    def _check_two_layers(self) -> None:
        """Check the small model's tokens; unless they are right, `tpi` is not measured."""
        job = next((j for j in self._jobs if j.todo and j.system.name == "tpi"), None)
        if job is None:
            return
        check = check_two_layers(
            self._plan,
            self._prompt_ids,
            self._environment,
            self._live,
            self._programs,
            threads=self._host.cores,
        )
        self._live.line(f"check: {check.detail}")
        job.record = replace(job.record, check=check)
        if not check.passed:
            status = "invalid" if check.is_broken else "wrong_output"
            failed = replace(job.record, status=status, reason=check.detail, metrics=None)
            job.record, job.todo = self._store.write(failed), 0

    def _run_repeats(self) -> None:
        reference = Reference(
            self._plan,
            self._weights,
            self._prompt_ids,
            self._live,
            threads=self._host.cores,
        )
        # Transformers first: where it computes in float32, its tokens are the others' reference.
        jobs = sorted(self._jobs, key=lambda job: job.system.name != "transformers")
        for index in range(max(job.todo for job in jobs)):
            for job in jobs if index % 2 == 0 else jobs[::-1]:
                if job.todo:
                    self._run_job(job, reference)

    def _run_job(self, job: _Job, reference: Reference) -> None:
        title = f"{job.system.name}, repeat {len(job.record.samples) + 1}"
        repeat = self._one_repeat(job, title)
        check = job.record.check
        is_checked = self._plan.check == "two_layer" and job.system.name == "tpi"
        if repeat.status == "ok" and not is_checked:
            check = reference.check(job.system.name, repeat.tokens)
            repeat = checked_status(repeat, check)
        job.record = self._store.append(self._with_findings(job.record, repeat, check), repeat)
        job.todo = job.todo - 1 if repeat.status == "ok" else 0
        self._live.line(f"{title}: {_in_words(repeat)}")

    def _one_repeat(self, job: _Job, title: str) -> Repeat:
        launch = make_launch(
            self._plan, job.system, self._weights, self._prompt_ids, self._programs
        )
        with (
            make_testbed(self._plan.config) as testbed,
            self._live.repeat(title, launch) as watch,
        ):
            outcome = run_repeat(launch, testbed, watch)
        return judge(outcome, len(job.record.samples), MEASURED_ID, self._plan.new_tokens)

    def _with_findings(self, record: RunRecord, repeat: Repeat, check: Check) -> RunRecord:
        """What a repeat tells beside its times: how its tokens were checked, notes, disk rates."""
        calibration = dict(record.calibration)
        if repeat.status == "ok" and (rate_bps := self._disk_rate(repeat)):
            rates = calibration.get("disk_read_bps")
            calibration["disk_read_bps"] = [*(rates if isinstance(rates, list) else []), rate_bps]
        return replace(
            record,
            check=check,
            calibration=calibration,
            environment={**record.environment, "devices": repeat.facts["devices"]},
            notes=tuple(dict.fromkeys((*record.notes, *_said(repeat)))),
        )

    def _disk_rate(self, repeat: Repeat) -> float | None:
        """What the disk gives now, beside a repeat that streamed much from it; else None."""
        per_token = measure(repeat).disk_bytes_per_token or 0
        return weight_sets.read_rate_bps(self._weights) if per_token >= _STREAMING_BYTES else None

    def _record_interrupt(self) -> None:
        for job in self._jobs:
            if job.todo:
                reason = f"stopped by the user, repeats to go: {job.todo}"
                job.record = self._store.write(
                    replace(job.record, status="interrupted", reason=reason)
                )


def _writable(folder: Path) -> Path:
    """The folder of records, made if need be; found out before hours are spent on one."""
    with map_errors({OSError: ConfigError}, f"results_dir {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder


def disk_share(record: RunRecord) -> str | None:
    """At which rate a run streamed, and which share of the disk's own best rate that is."""
    rates = record.calibration.get("disk_read_bps")
    metrics = record.metrics
    if not isinstance(rates, list) or not rates or metrics is None:
        return None
    if metrics.token_latency_s is None or not metrics.disk_bytes_per_token:
        return None
    rate_bps = metrics.disk_bytes_per_token / metrics.token_latency_s.median
    return (
        f"streamed {rate_bps / 1e9:.2f} GB/s, {rate_bps / max(rates):.0%} of what the disk gives"
        f" one reader of the same files ({max(rates) / 1e9:.2f} GB/s)"
    )


def _said(repeat: Repeat) -> list[str]:
    """Notes that programs gave with `ready`; each once, whichever ranks said it."""
    said: dict[str, None] = {}
    for item in repeat.events:
        notes = item.event.fields.get("notes") if item.event.name == "ready" else None
        said.update({str(note): None for note in notes} if isinstance(notes, list) else {})
    return list(said)


def _in_words(repeat: Repeat) -> str:
    if repeat.status != "ok":
        return f"{repeat.status}: {repeat.reason}"
    metrics = measure(repeat)
    text = f"ok, TTFT {format_seconds(metrics.ttft_s)}"
    if metrics.token_latency_s is not None:
        text += f", {format_seconds(metrics.token_latency_s)}/token"
    return text
