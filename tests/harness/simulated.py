"""A simulator that answers at once, and plans for it on a model of kilobytes."""

from dataclasses import dataclass, field
from typing import Any

from harness.config.compose import compose
from harness.config.config import Config
from harness.plan.plan import calibrated_host, make_plan
from harness.plan.types import Plan
from testbed.sim.base import SimOutcome, SimRun
from testbed.sim.calibration import Calibration
from tests.harness.micro import MODEL
from tpi.model_config import ModelConfig
from tpi.program.events import Event

S = 1_000_000_000
MIB = 1 << 20
# Round numbers: a core multiplies 10 GB/s of float32.
CALIBRATION = Calibration(
    host="a round host, 2026-01-01",
    core_read_bps=10e9,
    products={
        "float32->float32": ((1, 10e9), (512, 10e9)),
        "bfloat16->float32": ((1, 8e9), (512, 8e9)),
    },
    linear={"float32": ((1, 10e9), (512, 10e9))},
    attend={"float32": ((1, 1e10),)},
    cast_bps={"bfloat16->float32": 1e9},
    block_s=1e-4,
    element_s=1e-9,
    step_s=1e-3,
    sum_call_s=1e-5,
    send_s=1e-5,
    recv_s=1e-5,
    packet_s=1e-6,
    sum_bps=1e10,
    disk_read_bps=2e9,
    disk_request_s=1e-4,
    read_cpu_bps=1e10,
    page_in_bps=1e9,
    hook_s=1e-4,
    library_layer_s=1e-4,
    library_step_s=1e-3,
    swap_bps=1e8,
    start_s=3.0,
    library_start_s=6.0,
    library_bytes=300 * MIB,
    library_anon_bytes=200 * MIB,
)


def sim_plan(
    config: Config, model: ModelConfig, prompt_tokens: int, calibration: Calibration
) -> Plan:
    """A plan on calibrated devices."""
    host = calibrated_host(calibration)
    return make_plan(config, model, range(prompt_tokens), host, calibration)


def plan_of(tmp_path: Any, *overrides: str, calibration: Calibration = CALIBRATION) -> Plan:
    """A plan as the command line would make it, but for the model."""
    composed = compose(["testbed=sim", f"results_dir={tmp_path}/runs", *overrides])
    return sim_plan(composed.config, MODEL, 4, calibration)


@dataclass
class FakeSimulator:
    """A second a token on every rank; systems in `too_large` run out of memory."""

    too_large: tuple[str, ...] = ()
    raises: BaseException | None = None
    asked: list[SimRun] = field(default_factory=list)

    def __call__(self, run: SimRun, calibration: Calibration) -> SimOutcome:
        """Answer, and remember what was asked."""
        self.asked.append(run)
        if self.raises is not None:
            raise self.raises
        peaks = (300 * MIB,) * run.world_size
        if run.system in self.too_large:
            return SimOutcome((), peaks, peaks, "oom", "rank 0: needs 300 MiB, has 1 MiB")
        return SimOutcome(tuple(_events(run)), peaks, peaks, notes=("a note",))


def _events(run: SimRun) -> list[tuple[int, Event]]:
    ranks = range(run.world_size)
    end_ns = (2 + run.new_tokens) * S
    counters = {"disk_bytes_decode": 4000, "wire_bytes_sent_decode": 400, "compute_s": 1.0}
    counters |= {"messages_sent_decode": 40, "allreduce_s": 0.5, "wait_weights_s": 0.25}
    events = [(rank, Event("ready", S, {})) for rank in ranks]
    events.append((0, Event("request", S, {"id": "r0"})))
    for i in range(run.new_tokens):
        events.append((0, Event("token", (2 + i) * S, {"id": "r0", "token": 0})))
    for rank in ranks:
        events.append((rank, Event("counters", end_ns, {"id": "r0", "rank": rank, **counters})))
        events.append((rank, Event("end", end_ns, {"id": "r0"})))
    return events
