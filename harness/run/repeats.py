"""One repeat of a planned system: testbed, programs, faults of links, verdict."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from harness.config.profiles import LinkFault
from harness.plan.types import Plan, SystemPlan
from harness.progress.live import Live
from harness.run.judge import judge
from harness.run.launch import MEASURED_ID, make_launch, make_testbed
from harness.run.link_faults import FaultyRun
from harness.run.runner import run_repeat
from harness.run.weights import WeightSet
from results.records.schema import Repeat


@dataclass(frozen=True, slots=True)
class Repeats:
    """Starts the systems of a plan, on its weights, with these programs."""

    plan: Plan
    weights: WeightSet
    live: Live
    programs: Mapping[str, tuple[str, ...]]

    def run(
        self, system: SystemPlan, title: str, index: int = 0, faults: Sequence[LinkFault] = ()
    ) -> Repeat:
        """Start one system, its tokens unchecked; raises TpiError if it gets no devices."""
        plan, factor = self.plan, self.plan.dilation.factor
        with make_testbed(plan, system, self.weights) as (testbed, model_dirs):
            launch = make_launch(plan, system, self.programs, model_dirs)
            with (
                self.live.repeat(title, system.name, launch.requests, system.world_size) as shown,
                FaultyRun(shown, testbed, faults, MEASURED_ID, factor) as watch,
            ):
                outcome = run_repeat(launch, testbed, watch)
        repeat = judge(outcome, index, MEASURED_ID, plan.new_tokens, factor)
        return replace(repeat, facts=replace(repeat.facts, link_faults=tuple(watch.log)))
