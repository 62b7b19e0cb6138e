"""Executes a plan by the simulator, whose answers become run records like any other."""

import dataclasses
from collections.abc import Callable

from msgspec.structs import replace

from baselines.registry import simulate
from harness.plan.types import Plan, SystemPlan
from harness.progress.live import Live
from harness.run.annotate import in_words
from harness.run.jobs import Executor, Jobs
from harness.run.launch import MEASURED_ID
from harness.run.weights import locate
from results.records.notes import Said
from results.records.schema import PeakMemory, Repeat, RepeatFacts
from testbed.sim.base import SimDevice, SimOutcome, SimRun
from testbed.sim.calibration import Calibration
from tpi.errors import ConfigError, ResourceError, map_errors

Simulator = Callable[[SimRun, Calibration], SimOutcome]


class Simulation(Executor):
    """One plan with a calibration, and its records."""

    def __init__(self, plan: Plan, live: Live, simulator: Simulator = simulate) -> None:
        self._plan = plan
        self._live = live
        self._simulator = simulator
        self.jobs = Jobs(plan, locate(plan))

    def _execute(self) -> None:
        plan = self._plan
        if plan.calibration is None:
            raise ConfigError("testbed.backend=sim: the plan has no calibration")
        for job in self.jobs.pending:
            system = job.system
            with (
                self._live.waiting(f"simulating {system.name} on {system.devices_text}"),
                map_errors({ResourceError: ConfigError}, "memory_budget"),
            ):
                outcome = self._simulator(sim_run(plan, system), plan.calibration)
            notes = (*job.record.notes, *map(Said, outcome.notes))
            repeat = repeat_of(outcome)
            self.jobs.append(job, replace(job.record, notes=notes), repeat)
            self._live.line(f"{system.name}: {in_words(repeat, 'simulated')}")


def sim_run(plan: Plan, system: SystemPlan) -> SimRun:
    """A system of a plan as the simulator is asked for it."""
    options, shares = system.options, system.options.split
    return SimRun(
        system=system.name,
        compute=options.compute(plan.config.dtype, plan.max_tokens),
        model=plan.model,
        storage=plan.storage,
        prompt_tokens=plan.prompt_tokens,
        new_tokens=plan.new_tokens,
        devices=tuple(
            SimDevice(
                cores=limits.cpus or 1.0,
                memory=limits.memory,
                swap=limits.swap,
                disk_read_bps=limits.read_bps,
                disk_write_bps=limits.write_bps,
            )
            for limits in system.limits
        ),
        links=tuple(device.link for device in system.devices),
        shares=None if shares is None else tuple(shares),
        options=options.spec(),
        keep_spans=plan.config.trace,
    )


def repeat_of(outcome: SimOutcome) -> Repeat:
    """What the simulator answered, as if it had been measured."""
    no_one = (None,) * len(outcome.rss_hwm)
    return Repeat(
        index=0,
        request_id=MEASURED_ID,
        status=outcome.status,
        reason=outcome.reason,
        start_ns=(0,) * len(outcome.rss_hwm),
        peak_memory=PeakMemory(outcome.rss_hwm, outcome.anon_peak, cgroup_peak=no_one),
        events=tuple(dataclasses.replace(event, rank=rank) for rank, event in outcome.events),
        facts=RepeatFacts(simulated=True),
    )
