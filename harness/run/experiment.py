"""Carries out a plan: weights, repeats, checks, records. The one place that joins the parts.

Systems alternate (A B, B A, ...) so that a slow drift of the machine hits all alike; every repeat
gets fresh devices and a warm-up request before the measured one. A record is written after every
repeat, so that whatever stops the program loses at most one. Read `Experiment.run` first.
"""

from collections.abc import Mapping
from pathlib import Path

from msgspec.structs import replace

from baselines.registry import REFERENCE
from harness.plan.types import Plan
from harness.progress.live import Live
from harness.run import weights as weight_sets
from harness.run.annotate import in_words, with_findings
from harness.run.jobs import Job, Jobs
from harness.run.judge import checked_status, judge
from harness.run.launch import MEASURED_ID, PROGRAMS, make_launch, make_testbed
from harness.run.link_faults import FaultyRun
from harness.run.reduced_model_check import ReducedModelCheck
from harness.run.reference import Reference
from harness.run.runner import run_repeat
from results.records.schema import Repeat, RunRecord
from testbed.host.environment import host_environment
from testbed.host.hostlock import Contention
from testbed.host.rates import Host
from tpi.errors import EXIT_OK

EXIT_FAILED = 1
_GOOD = ("ok", "infeasible", "unavailable")
# A device that runs into its own limit is what an emulated one is for: a result.
_GOOD_IN_LIMITS = (*_GOOD, "oom")


class Experiment:
    """One plan, its weights and its records."""

    def __init__(
        self,
        plan: Plan,
        host: Host,
        prompt_ids: tuple[int, ...],
        live: Live,
        programs: Mapping[str, tuple[str, ...]] = PROGRAMS,
        contention: Contention | None = None,
    ) -> None:
        self._contention = contention
        self._plan = plan
        self._host = host
        self._prompt_ids = prompt_ids
        self._live = live
        self._programs = programs
        self._facts = host_environment(Path(plan.config.weights.dir))
        self._weights = weight_sets.locate(plan)
        self._jobs = Jobs(plan, host, self._weights, prompt_ids, self._facts)

    @property
    def pending(self) -> list[str]:
        """Systems that have repeats to do."""
        return [job.system.name for job in self._jobs.pending]

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
        """0 if all ended ok, or were computed or seen not to fit their device; else 1."""
        good = _GOOD_IN_LIMITS if self._plan.is_emulated else _GOOD
        return EXIT_OK if all(r.status in good for r in self.records) else EXIT_FAILED

    def run(self) -> None:
        """Do everything that is left to do.

        Raises:
            KeyboardInterrupt: After all programs ended and unfinished records say `interrupted`.
            TpiError: Weights or devices could not be made.
        """
        self._jobs.say_what_is_kept(self._live)
        if not self.pending:
            return
        try:
            weight_sets.check_space(self._plan, self._weights, self._host.free_disk)
            self._check_two_layers()
            if self.pending:
                weight_sets.obtain(self._plan, self._weights, self._live)
                self._run_repeats()
        except KeyboardInterrupt:
            self._jobs.interrupt()
            raise

    def _check_two_layers(self) -> None:
        """Where no reference fits: check each system's tokens on a small model first.

        One whose tokens are wrong there is not measured.
        """
        names = {system.name for system in self._plan.checked_first}
        jobs = [job for job in self._jobs.pending if job.system.name in names]
        if not jobs:
            return
        with ReducedModelCheck(
            self._plan,
            [job.system.name for job in jobs],
            self._prompt_ids,
            self._facts,
            self._live,
            self._programs,
            threads=self._host.cores,
        ) as small:
            for job in jobs:
                check = small.check(job.system.name)
                self._live.line(f"check of {job.system.name}: {check.detail}")
                self._jobs.enter_check(job, check)

    def _run_repeats(self) -> None:
        reference = Reference(
            self._plan,
            self._weights,
            self._prompt_ids,
            self._live,
            threads=self._host.cores,
        )
        # The reference first: where it computes in float32, its tokens are what others must give.
        jobs = sorted(self._jobs, key=lambda job: job.system.name != REFERENCE)
        todo = {job.system.name: job.todo for job in self._jobs.pending}
        with self._live.run(todo, self._plan.config.repeats):
            for index in range(max(todo.values())):
                for job in jobs if index % 2 == 0 else jobs[::-1]:
                    if job.todo:
                        self._run_job(job, reference)

    def _run_job(self, job: Job, reference: Reference) -> None:
        title = f"{job.system.name}, repeat {len(job.record.samples) + 1}"
        repeat = self._one_repeat(job, title)
        check = job.record.check
        if repeat.status == "ok" and job.system not in self._plan.checked_first:
            check = reference.check(job.system, repeat.tokens)
            repeat = checked_status(repeat, check)
        record = with_findings(job.record, repeat, check, self._weights)
        self._jobs.append(job, record, repeat)
        self._live.ended(job.system.name, repeat)
        self._live.line(f"{title}: {in_words(repeat)}")

    def _one_repeat(self, job: Job, title: str) -> Repeat:
        plan, system, weights = self._plan, job.system, self._weights
        with make_testbed(plan, system, weights) as (testbed, model_dirs):
            launch = make_launch(
                plan, system, weights, self._prompt_ids, self._programs, model_dirs
            )
            factor = plan.dilation.factor
            with (
                self._live.repeat(
                    title, launch.system, launch.requests, launch.world_size
                ) as shown,
                FaultyRun(shown, testbed, plan.config.link.faults, MEASURED_ID, factor) as watch,
            ):
                outcome = run_repeat(launch, testbed, watch)
        repeat = judge(outcome, len(job.record.samples), MEASURED_ID, plan.new_tokens, factor)
        contended = self._contention is not None and self._contention.seen()
        facts = replace(repeat.facts, link_faults=tuple(watch.log), contended=contended)
        return replace(repeat, facts=facts)
