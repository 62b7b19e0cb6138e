"""Executes a plan by real processes: weights, repeats, checks, records.

Systems alternate (A B, B A, ...), so that a slow drift of the machine affects all alike. Every
repeat gets fresh devices and a warm-up request before the measured one. Records are written after
every repeat, so that at most one is lost if the program is stopped.
"""

from collections.abc import Mapping

from msgspec.structs import replace

from baselines.registry import REFERENCE
from harness.plan.types import Plan
from harness.progress.live import Live
from harness.run import weights as weight_sets
from harness.run.annotate import in_words, with_findings
from harness.run.jobs import Executor, Job, Jobs
from harness.run.judge import checked_status
from harness.run.launch import PROGRAMS
from harness.run.reduced_model_check import ReducedModelCheck
from harness.run.reference import Reference
from harness.run.repeats import Repeats
from testbed.host.hostlock import Contention


class Experiment(Executor):
    """One plan, its weights and its records."""

    def __init__(
        self,
        plan: Plan,
        live: Live,
        programs: Mapping[str, tuple[str, ...]] = PROGRAMS,
        contention: Contention | None = None,
    ) -> None:
        self._contention = contention
        self._plan = plan
        self._live = live
        self._weights = weight_sets.locate(plan)
        self._repeats = Repeats(plan, self._weights, live, programs)
        self.jobs = Jobs(plan, self._weights)

    @property
    def to_write(self) -> int:
        """Bytes of weights that will be written."""
        return self._weights.to_write if self.pending else 0

    def _execute(self) -> None:
        weight_sets.check_space(self._plan, self._weights)
        self._check_two_layers()
        if self.pending:
            weight_sets.obtain(self._plan, self._weights, self._live)
            self._run_repeats()

    def _check_two_layers(self) -> None:
        """Where no reference fits: check each system's tokens on a small model first.

        One whose tokens are wrong there is not measured.
        """
        names = {system.name for system in self._plan.checked_first}
        jobs = [job for job in self.jobs.pending if job.system.name in names]
        if not jobs:
            return
        with ReducedModelCheck(self._repeats, [job.system.name for job in jobs]) as small:
            for job in jobs:
                check = small.check(job.system.name)
                self._live.line(f"check of {job.system.name}: {check.detail}")
                self.jobs.enter_check(job, check)

    def _run_repeats(self) -> None:
        reference = Reference(self._plan, self._weights, self._live)
        # The reference first: in float32, its tokens are those that others must give.
        jobs = sorted(self.jobs, key=lambda job: job.system.name != REFERENCE)
        todo = {job.system.name: job.todo for job in self.jobs.pending}
        with self._live.run(todo, self._plan.config.repeats):
            for index in range(max(todo.values())):
                for job in jobs if index % 2 == 0 else jobs[::-1]:
                    if job.todo:
                        self._run_job(job, reference)

    def _run_job(self, job: Job, reference: Reference) -> None:
        system, index = job.system, len(job.record.samples)
        title = f"{system.name}, repeat {index + 1}"
        repeat = self._repeats.run(system, title, index, self._plan.config.link.faults)
        contended = self._contention is not None and self._contention.seen()
        repeat = replace(repeat, facts=replace(repeat.facts, contended=contended))
        check = job.record.check
        if repeat.status == "ok" and system not in self._plan.checked_first:
            check = reference.check(system, repeat.tokens)
            repeat = checked_status(repeat, check)
        record = with_findings(job.record, repeat, check, self._weights)
        self.jobs.append(job, record, repeat)
        self._live.ended(system.name, repeat)
        self._live.line(f"{title}: {in_words(repeat)}")
