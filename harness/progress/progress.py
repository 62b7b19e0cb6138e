"""The state of a run: its systems, the repeat that runs, and the time that is left. No output.

`RepeatProgress` follows one repeat from its events; `SystemProgress` is one system's row and
`RunProgress` all of them. `live.py` shows them, and has memory read from the devices' meters.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median

from results.records.measure import measure
from results.records.schema import Repeat, RepeatMetrics
from testbed.base import Device
from tpi.program.events import Event
from tpi.program.spec import Request
from tpi.ranks import MASTER_RANK
from tpi.units import format_seconds

Clock = Callable[[], float]  # seconds, monotonic


class RepeatProgress:
    """One repeat, from its devices and events; a runner's watch."""

    def __init__(self, requests: Sequence[Request], world_size: int, clock: Clock) -> None:
        self._clock = clock
        self._world_size = world_size
        self._requests = {request.id: request for request in requests}
        self._devices: Sequence[Device] = ()
        self._num_ready = 0
        self._num_tokens = 0
        self._request_ns = self._first_ns = 0
        self._start_s = clock()
        self.phase = "starting"
        self.token = self.new_tokens = 0  # of the request that runs
        self.ttft_s: float | None = None
        self.latency_s: float | None = None
        self.memory: tuple[int | None, ...] = ()

    @property
    def elapsed_s(self) -> float:
        """Time since it was started."""
        return self._clock() - self._start_s

    @property
    def share(self) -> float:
        """Share of all tokens that are there."""
        return self._num_tokens / max(1, sum(r.new_tokens for r in self._requests.values()))

    @property
    def words(self) -> str:
        """Its state, for a line of its own."""
        if not self.new_tokens:
            return f"{self.phase}, devices: {self._world_size}"
        if not self.token:
            return f"{self.phase}, prefill"
        speed = f"TTFT {format_seconds(self.ttft_s or 0)}"
        if self.latency_s is not None:
            speed = f"{format_seconds(self.latency_s)}/token"
        return f"{self.phase}, token {self.token} of {self.new_tokens}, {speed}"

    def started(self, devices: Sequence[Device]) -> None:
        """Keep the devices, on which all programs run now."""
        self._devices, self.phase = devices, "loading"

    def event(self, event: Event) -> None:
        """Follow one event."""
        if event.name == "ready":
            self._num_ready += 1
            self.phase = f"ready {self._num_ready} of {self._world_size}"
        elif event.name == "request" and event.rank == MASTER_RANK:
            request = self._requests.get(event.request_id)
            self.phase = "warm-up" if request and request.warmup else "measured"
            self.token, self.new_tokens = 0, request.new_tokens if request else 0
            self._request_ns, self.ttft_s, self.latency_s = event.t_ns, None, None
        elif event.name == "token" and event.rank == MASTER_RANK:
            self._take_token(event.t_ns)

    def read_memory(self) -> None:
        """Read the peak of every device."""
        self.memory = tuple(device.meter().rss_hwm for device in self._devices)

    def _take_token(self, t_ns: int) -> None:
        self._num_tokens += 1
        self.token += 1
        if self.token == 1:
            self._first_ns, self.ttft_s = t_ns, (t_ns - self._request_ns) / 1e9
        else:
            self.latency_s = (t_ns - self._first_ns) / 1e9 / (self.token - 1)


@dataclass
class SystemProgress:
    """One system and its repeats.

    Attributes:
        repeats: How many are wanted in all; `todo` of them are still to be done.
        is_checking: Whether a repeat has ended whose tokens are not yet judged.
        failed: The status it failed with; no more repeats follow.
        spent_s: Seconds that each of its repeats took.
    """

    name: str
    repeats: int
    todo: int
    running: RepeatProgress | None = None
    is_checking: bool = False
    failed: str = ""
    memory: tuple[int | None, ...] = ()
    spent_s: list[float] = field(default_factory=list)
    measured: list[RepeatMetrics] = field(default_factory=list)

    @property
    def state(self) -> str:
        """What it does, in a word or two."""
        if self.failed:
            return self.failed
        if self.running is not None:
            phase, of = self.running.phase, self.running.new_tokens
            return f"{phase} {self.running.token}/{of}" if of else phase
        if self.is_checking:
            return "checking"
        return "waiting" if self.todo else "done"

    @property
    def number(self) -> int:
        """The number of the repeat that runs, else of those that are done."""
        is_busy = self.running is not None or self.is_checking
        return self.repeats - self.todo + is_busy

    @property
    def ttft_s(self) -> float | None:
        """Of the measured request that runs, else the median of the repeats."""
        if self.running is not None and self.running.phase == "measured":
            return self.running.ttft_s
        return self._median(each.ttft_s for each in self.measured)

    @property
    def latency_s(self) -> float | None:
        """The mean time between tokens: of the measured request, else the median of the repeats."""
        if self.running is not None and self.running.phase == "measured":
            return self.running.latency_s
        return self._median(each.token_latency_s for each in self.measured)

    @property
    def time_s(self) -> float | None:
        """Of the repeat that runs, else of the last one."""
        if self.running is not None:
            return self.running.elapsed_s
        return self.spent_s[-1] if self.spent_s else None

    def _median(self, values: Iterable[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return median(known) if known and not self.failed else None

    def stopped(self) -> None:
        """The repeat that ran has ended, well or not."""
        if self.running is not None:
            self.spent_s.append(self.running.elapsed_s)
            self.memory = self.running.memory or self.memory
            self.running, self.is_checking = None, True

    def judged(self, repeat: Repeat) -> None:
        """Take the verdict on the repeat."""
        self.is_checking = False
        self.memory = repeat.peak_memory.rss_hwm
        if repeat.status != "ok":
            self.failed, self.todo = repeat.status, 0
            return
        self.todo = max(0, self.todo - 1)
        self.measured.append(measure(repeat))


class RunProgress:
    """All systems of a run; `todo` says for each how many repeats are to be done."""

    def __init__(self, todo: Mapping[str, int], repeats: int, clock: Clock) -> None:
        self._clock = clock
        self._start_s = clock()
        self._total = sum(todo.values())
        self.rows = {name: SystemProgress(name, repeats, count) for name, count in todo.items()}

    @property
    def elapsed_s(self) -> float:
        """Time since it began."""
        return self._clock() - self._start_s

    @property
    def done(self) -> tuple[int, int]:
        """Repeats that are done, or dropped with their system, of all that were to be done."""
        return self._total - sum(row.todo for row in self.rows.values()), self._total

    @property
    def left_s(self) -> float | None:
        """Time that is left, from what the repeats took so far; None as long as none did."""
        means = {name: fmean(row.spent_s) for name, row in self.rows.items() if row.spent_s}
        if not means:
            return None
        others_s = fmean(means.values())
        left_s = 0.0
        for name, row in self.rows.items():
            each_s = means.get(name, others_s)
            spent_s = row.running.elapsed_s if row.running else each_s * row.is_checking
            left_s += max(0.0, each_s * row.todo - min(spent_s, each_s))
        return left_s
