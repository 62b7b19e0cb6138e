"""What simulated schedules share: one start and one request of ranks that compute and send.

`SimEngine` has the ranks' clocks and makes a request of steps; a system's own engine defines a
step. `serve` loads what stays in memory, fills the windows (as a warm-up request does in a real
run), serves one request, and makes its events.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from testbed.sim.base import SimDevice, SimOutcome, SimRun
from testbed.sim.calibration import Calibration
from testbed.sim.costs import Costs
from testbed.sim.devices import Block, Devices
from testbed.sim.network import Network
from testbed.sim.rank_plans import MAPPED_BYTES
from testbed.sim.timeline import Mark, Timeline, to_events
from tpi.units import format_bytes

PAGED = "paging is taken as strictly least recently used: every pass reads everything again"


class SimEngine:
    """All ranks of one session.

    Attributes:
        devices: Their clocks.
        network: Their links.
        weights: Bytes of the blocks that a pass goes through, by rank.
    """

    weights: Sequence[int]

    def __init__(self, run: SimRun, calibration: Calibration, windows: Sequence[int]) -> None:
        self.run = run
        self.costs = Costs(run, calibration)
        self.devices = Devices(windows, run.keep_spans)
        self.network = Network(run.links, [d.cores for d in run.devices], calibration)
        self.start_ns = self.costs.on_cores(calibration.start_s)
        self._chunk = run.compute.prefill_chunk
        self._step_ns = self.costs.on_cores(calibration.step_s)

    def step(self, rows: int, start: int, *, want_logits: bool = True) -> None:
        """One pass of so many tokens behind `start` cached ones."""
        raise NotImplementedError

    def blocks(self) -> Sequence[Block]:
        """The blocks of a step that loaders read, in order."""
        return ()

    def start_at(self, now: int) -> None:
        """Set all clocks; the loaders have filled their windows by then."""
        self.devices.start_at(now)
        self.network.up[:] = self.network.down[:] = now

    def request(self, new_tokens: int) -> Iterator[Mark]:
        """Make tokens; yields where all ranks are after each step that makes one."""
        prompt = self.run.prompt_tokens
        for start in range(0, prompt, self._chunk):
            rows = min(self._chunk, prompt - start)
            self.step(rows, start, want_logits=start + rows == prompt)
        yield self.mark()
        for position in range(prompt, prompt + new_tokens - 1):
            self.step(1, position)
            yield self.mark()

    @property
    def prefill_passes(self) -> int:
        """Chunks of the prompt."""
        return -(-self.run.prompt_tokens // self._chunk)

    def mark(self) -> Mark:
        """Clocks and counters as they are now."""
        devices, network = self.devices, self.network
        return Mark(
            devices.now.copy(), devices.tally.copy(),
            network.messages.copy(), network.num_bytes.copy(),
        )  # fmt: skip


def serve(
    engine: SimEngine,
    rss: tuple[int, ...],
    kept: Sequence[int],
    windows: Sequence[Mapping[str, object]],
) -> SimOutcome:
    """One start and one request.

    By rank: `rss` is the peak memory, `kept` the bytes read before it is ready, and `windows` what
    its `ready` event says about its window.
    """
    run = engine.run
    anon = tuple(max(0, peak - MAPPED_BYTES) for peak in rss)
    if reason := out_of_memory(run.devices, anon):
        return SimOutcome((), rss, anon, "oom", reason)
    engine.costs.swap(anon, engine.weights)
    load = np.array(kept, dtype=np.int64)
    ready = engine.start_ns + (engine.costs.read(load) if load.any() else load)
    go = int(ready.max()) + engine.devices.fill(engine.blocks())
    engine.start_at(go)
    first = engine.mark()
    tokens = tuple(engine.request(run.new_tokens))
    held = resident(run.devices, rss)
    timeline = Timeline(
        ready, go, first, tokens, held, engine.devices.spans,
        prefill_passes=engine.prefill_passes, ready_fields=windows,
    )  # fmt: skip
    return SimOutcome(
        to_events(timeline), held, resident(run.devices, anon), notes=_left_out(run, anon)
    )


def _left_out(run: SimRun, anon: tuple[int, ...]) -> tuple[str, ...]:
    """The effects on this run that the simulator leaves out, in words."""
    found = []
    if any(link.loss_frac for link in run.links):
        found.append("packet loss is not simulated: nothing is sent twice")
    if any(d.memory is not None and n > d.memory for d, n in zip(run.devices, anon, strict=True)):
        found.append(PAGED)
    return tuple(found)


def resident(devices: tuple[SimDevice, ...], peaks: tuple[int, ...]) -> tuple[int, ...]:
    """The part of each rank's need that is in memory at once: at most what its device has."""
    return tuple(
        peak if device.memory is None else min(peak, device.memory)
        for device, peak in zip(devices, peaks, strict=True)
    )


def out_of_memory(devices: tuple[SimDevice, ...], anon: tuple[int, ...]) -> str:
    """Which rank needs more than its memory and swap, in words; empty if none does."""
    for rank, (device, need) in enumerate(zip(devices, anon, strict=True)):
        if device.memory is not None and need > device.memory + device.swap:
            return (
                f"rank {rank} needs {format_bytes(need)}, its limit is"
                f" {format_bytes(device.memory)} and {format_bytes(device.swap)} of swap"
            )
    return ""
