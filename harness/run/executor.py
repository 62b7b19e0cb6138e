"""What executes a plan: real processes (`Experiment`) or the simulator (`Simulation`)."""

from typing import Protocol

from harness.progress.live import Live
from harness.run.jobs import Jobs
from results.records.schema import RunRecord


class Executor(Protocol):
    """One plan and its records."""

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
        return self.jobs.exit_status

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
