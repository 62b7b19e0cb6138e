"""The simulator's questions and answers: plain values, no torch, nothing measured.

`simulate` (`baselines/registry.py`) takes a `SimRun` and gives a `SimOutcome`, whose events are
those that the real programs would have written: `ready`, `request`, `token`, `counters`, `end` and,
where they are kept, `spans`. Times are the devices' own seconds; the simulator has no dilation.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from testbed.links.link import LinkSpec
from tpi.model_config import ModelConfig
from tpi.options import ComputeOptions
from tpi.program.events import Event


@dataclass(frozen=True, slots=True)
class SimDevice:
    """One device.

    Attributes:
        cores: Its worth in cores of the calibrated host; costs of computing are divided by it.
        memory: Bytes; None is no limit.
        swap: Bytes beside `memory`.
        disk_read_bps: Bytes per second, `disk_write_bps` too; None is no limit.
    """

    cores: float
    memory: int | None = None
    swap: int = 0
    disk_read_bps: float | None = None
    disk_write_bps: float | None = None


@dataclass(frozen=True, slots=True)
class SimRun:
    """One system on one testbed.

    Attributes:
        system: Its name in `baselines/registry.py`.
        storage: Dtype of the stored weights.
        devices: By rank; a system that takes one device gets one.
        links: By rank, undilated.
        shares: How unequal the ranks' parts of the model are; None for all alike.
        options: Other options of the system's program (`overlap`, `max_memory` ...).
        keep_spans: Whether the single spans are wanted, and not their sums alone.
    """

    system: str
    compute: ComputeOptions
    model: ModelConfig
    storage: str
    prompt_tokens: int
    new_tokens: int
    devices: tuple[SimDevice, ...]
    links: tuple[LinkSpec, ...]
    shares: tuple[float, ...] | None = None
    options: Mapping[str, object] = field(default_factory=dict)
    keep_spans: bool = False

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return len(self.devices)


@dataclass(frozen=True, slots=True)
class SimOutcome:
    """Events and memory that a run would have.

    Attributes:
        events: (rank, event), in the order of their times; the clock starts at 0.
        rss_hwm: Predicted peak memory of each rank, in bytes; `anon_peak` is its anonymous part.
        status: `ok`, or `oom` where a device's memory and swap do not suffice.
        reason: Why `status` is not `ok`: rank, need and limit.
        notes: For people: what the model leaves out.
    """

    events: tuple[tuple[int, Event], ...]
    rss_hwm: tuple[int, ...]
    anon_peak: tuple[int, ...]
    status: str = "ok"
    reason: str = ""
    notes: tuple[str, ...] = field(default=())
