"""Library systems on one device: what is in memory, and what every pass reads again.

`transformers` keeps all weights in the dtype of the arithmetic. If stored in another dtype,
they are anonymous memory, which may be swapped out; else they are views of mapped files. Every pass
goes through the weights in the same order, so an LRU cache that is too small for them drops exactly
what is needed next: every pass reads everything again.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import msgspec
import numpy as np

from baselines.simulated import PAGED, out_of_memory, resident
from testbed.sim.base import SimDevice, SimOutcome, SimRun
from testbed.sim.calibration import Calibration
from testbed.sim.devices import Span, Tally
from testbed.sim.timeline import Mark, Timeline, to_events
from tpi.errors import ConfigError
from tpi.model_config import DTYPE_BYTES, ModelConfig
from tpi.planner.memory import memory_parts
from tpi.ranks import MASTER_RANK
from tpi.weights.shard import make_shard_plan


@dataclass(frozen=True, slots=True)
class LibraryPlan:
    """One library system on one device.

    Attributes:
        anon: Anonymous memory at the peak, without what a request adds; `steady` while it serves.
        rss: VmHWM while it loads, with what is mapped; of that, `mapped` while it serves.
        cached: Bytes of files that each pass goes through.
        hooks_s: Of every pass before its products, blocking; on the device's processor.
        load_bytes: Read before it is ready; `load_s` of processor time for them. `written` after.
    """

    anon: int
    steady: int
    rss: int
    cached: int
    hooks_s: float
    load_bytes: int
    load_s: float
    written: int = 0
    mapped: int = 0


def num_elements(model: ModelConfig) -> tuple[int, int, int]:
    """Elements of a layer's matrices, of the LM head, and of the whole model."""
    heads = 2 * model.num_heads + 2 * model.num_kv_heads
    layer = model.hidden_size * (heads * model.head_size + 3 * model.ffn_size)
    head = model.vocab_size * model.hidden_size
    return layer, head, model.num_layers * layer + head * (1 if model.tied_embeddings else 2)


def request_bytes(run: SimRun) -> int:
    """Memory that a request adds to the weights: cache, activations of the prompt, logits."""
    options = msgspec.structs.replace(run.compute, prefill_chunk=run.prompt_tokens)  # in one pass
    parts = memory_parts(run.model, make_shard_plan(run.model, 1), MASTER_RANK, options)
    return parts.kv_cache + parts.activations + parts.logits


def simulate(run: SimRun, calibration: Calibration) -> SimOutcome:
    """Plain Transformers."""
    dtype = run.compute.dtype
    total = num_elements(run.model)[2]
    stored, weights = total * DTYPE_BYTES[run.storage], total * DTYPE_BYTES[dtype]
    maps = bool(run.options.get("mmap", True))
    views = maps and bool(run.options.get("low_cpu_mem_usage", True)) and run.storage == dtype
    base, anon = calibration.library_bytes, calibration.library_anon_bytes
    steady = anon + (0 if views else weights)
    # While it loads, the checkpoint is beside it: as mapped pages that fit, or as bytes read.
    beside = 0 if views else stored
    peak = steady + (0 if maps else beside)
    plan = LibraryPlan(
        anon=peak,
        steady=steady,
        rss=base + weights + (fitting_bytes(run.devices[0], peak, beside) if maps else beside),
        cached=weights if views else 0,
        mapped=weights if views else 0,
        hooks_s=0.0,
        load_bytes=0 if views else stored,
        load_s=0.0 if views else calibration.cast_s(stored, run.storage, dtype),
    )
    return serve(run, calibration, plan)


def fitting_bytes(device: SimDevice, anon: int, wanted: int) -> int:
    """How many `wanted` bytes of files fit in memory beside the anonymous bytes."""
    return wanted if device.memory is None else max(0, min(wanted, device.memory - anon))


def serve(run: SimRun, calibration: Calibration, plan: LibraryPlan) -> SimOutcome:
    """One start and one request of a warm process."""
    if run.world_size != 1:
        raise ConfigError(f"{run.system}: takes one device, got {run.world_size}")
    device = run.devices[0]
    # Second copies of the load are gone before a request comes.
    served = plan.steady + request_bytes(run)
    anon = (max(plan.anon, served),)
    plan = replace(plan, steady=served)
    beside = calibration.library_bytes - calibration.library_anon_bytes
    rss = (max(plan.rss, served + beside + plan.mapped),)
    if reason := out_of_memory(run.devices, anon):
        return SimOutcome((), rss, anon, "oom", reason)
    disk_bps = device.disk_read_bps or calibration.disk_read_bps
    start_s = calibration.library_start_s / device.cores
    ready_s = start_s + plan.load_bytes / disk_bps + plan.load_s / device.cores
    ready_s += plan.written / (device.disk_write_bps or disk_bps)
    clock = _Clock(run, calibration, plan, ready_s)
    held = resident(run.devices, rss)
    first = clock.mark()
    marks = [clock.step(run.prompt_tokens, 0)]
    marks += [clock.step(1, run.prompt_tokens + i) for i in range(run.new_tokens - 1)]
    ready = np.array([round(ready_s * 1e9)])
    timeline = Timeline(ready, int(ready[0]), first, marks, held, clock.spans)
    return SimOutcome(
        to_events(timeline),
        held,
        resident(run.devices, anon),
        notes=(PAGED,) if clock.reads else (),
    )


class _Clock:
    """The passes of one request; `spans` are theirs, if the run keeps them."""

    def __init__(
        self, run: SimRun, calibration: Calibration, plan: LibraryPlan, now_s: float
    ) -> None:
        self.spans: list[Span] = []
        self._run, self._calibration, self._plan = run, calibration, plan
        self._now_s, self._compute_s, self._wait_s, self._disk = now_s, 0.0, 0.0, 0
        device = run.devices[0]
        self._cores = device.cores
        disk_bps = device.disk_read_bps or calibration.disk_read_bps
        fits = fitting_bytes(device, plan.steady, plan.cached) >= plan.cached
        self.reads = 0 if fits else plan.cached
        self._read_s = self.reads / disk_bps
        swaps = device.memory is not None and plan.steady > device.memory
        swapped = plan.steady if swaps else 0
        self._swap_s = swapped / min(calibration.swap_bps, disk_bps)
        self.reads += swapped

    def step(self, rows: int, start: int) -> Mark:
        """One pass."""
        hooks_s = self._plan.hooks_s / self._cores
        # Readahead fetches the next pages while these are copied or multiplied.
        wait_s = max(hooks_s, self._read_s)
        compute_s = self._compute(rows, start) + self._swap_s
        if not self._plan.hooks_s:
            wait_s, compute_s = 0.0, max(compute_s, self._read_s)
        if self._run.keep_spans:
            self.spans += _spans(self._run.model, self._now_s, wait_s, compute_s)
        self._now_s += wait_s + compute_s
        self._wait_s += wait_s
        self._compute_s += compute_s
        self._disk += self.reads
        return self.mark()

    def _compute(self, rows: int, start: int) -> float:
        costs, model, dtype = self._calibration, self._run.model, self._run.compute.dtype
        item = DTYPE_BYTES[dtype]
        layer, head, _ = num_elements(model)
        width = model.num_heads * model.head_size
        each_s = costs.linear_s(layer * item, rows, dtype) + costs.library_layer_s
        each_s += costs.attend_s(rows, start + (rows + 1) / 2, width, dtype)
        each_s += 2 * costs.element_s * (rows - 1) * model.hidden_size
        once_s = costs.linear_s(head * item, 1, dtype) + costs.library_step_s
        return (model.num_layers * each_s + once_s) / self._cores

    def mark(self) -> Mark:
        """Clock and counters as they are now."""
        zero = np.zeros(1, dtype=np.int64)
        seconds = (self._compute_s, 0.0, self._wait_s)
        compute, allreduce, wait = (np.array([round(x * 1e9)]) for x in seconds)
        tally = Tally(compute, allreduce, wait, np.array([self._disk]))
        return Mark(np.array([round(self._now_s * 1e9)]), tally, zero, zero)


def _spans(model: ModelConfig, now_s: float, wait_s: float, compute_s: float) -> Iterator[Span]:
    """A pass block by block: each waits and computes in proportion to its weights."""
    layer, head, _ = num_elements(model)
    ffn = 3 * model.hidden_size * model.ffn_size
    sizes = {f"{kind}.{i}": n for i in range(model.num_layers)
             for kind, n in (("attn", layer - ffn), ("ffn", ffn))}  # fmt: skip
    sizes["head.0"] = head
    total, rank = model.num_layers * layer + head, np.zeros(1, dtype=np.int64)
    for label, size in sizes.items():
        for name, seconds in (("wait", wait_s), ("compute", compute_s)):
            until_s = now_s + seconds * size / total
            start, end = (np.array([round(x * 1e9)]) for x in (now_s, until_s))
            yield Span(name, label, rank, start, end)
            now_s = until_s
