"""What the simulator is asked, and what it answers: plain values, no torch, nothing measured.

`simulate` (in `simulate.py`) takes a `SimRun` and gives a `SimOutcome`, whose events are those that
the real programs would have written: `ready`, `request`, `token`, `counters`, `end` and, where they
are kept, `spans`. Times are the devices' own seconds, undilated; the simulator has no dilation.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from testbed.links.link import LinkSpec
from tpi.model_config import ModelConfig
from tpi.program.events import Event


@dataclass(frozen=True, slots=True)
class SimDevice:
    """One device.

    Attributes:
        cores: What it is worth in cores of the calibrated host; all costs of computing are
            divided by it.
        memory: Bytes; None is no limit. Likewise `disk_read_bps`, bytes per second, and
            `disk_write_bps`, which is that of reading then.
        swap: Bytes beside `memory`.
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
        options: Its options, as `asdict` gives them (`window`, `allreduce`, `shares` ...).
        storage: Dtype of the stored weights; `dtype` is that of the computation.
        devices: By rank; a system that takes one device gets one.
        links: By rank, undilated.
        keep_spans: Whether the single spans are wanted, and not their sums alone.
    """

    system: str
    options: Mapping[str, object]
    model: ModelConfig
    storage: str
    dtype: str
    prompt_tokens: int
    new_tokens: int
    devices: tuple[SimDevice, ...]
    links: tuple[LinkSpec, ...]
    keep_spans: bool = False

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return len(self.devices)


@dataclass(frozen=True, slots=True)
class SimOutcome:
    """What a run would have said and taken.

    Attributes:
        events: (rank, event), in the order of their stamps; the clock starts at 0.
        rss_hwm: Predicted peak memory of each rank, in bytes; likewise `anon_peak`.
        status: `ok`, or `oom` where a device's memory and swap would not do.
        reason: Why `status` is not `ok`: rank, need and limit.
        notes: For people: what the model leaves out.
    """

    events: tuple[tuple[int, Event], ...]
    rss_hwm: tuple[int, ...]
    anon_peak: tuple[int, ...]
    status: str = "ok"
    reason: str = ""
    notes: tuple[str, ...] = field(default=())
