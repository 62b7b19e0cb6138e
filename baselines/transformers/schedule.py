"""Transformers and Accelerate on one device: what is in memory, and what every pass reads again.

`transformers` keeps all weights in the dtype of the arithmetic. Stored in another dtype they are
anonymous memory, which swap takes where memory does not do; else they are views of mapped files.
`accelerate` brings every module's weights in as its forward begins, through the page cache;
`accelerate-2024` likewise, from files in the dtype of the arithmetic. What a pass goes through in
order and does not fit in the page cache, or in memory beside swap, is read anew by every pass:
whatever goes first is what would be needed next. Read `_serve`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import msgspec
import numpy as np

from baselines.tpi.simulate import PAGED, out_of_memory, resident
from testbed.sim.base import SimDevice, SimOutcome, SimRun
from testbed.sim.calibration import Calibration
from testbed.sim.devices import Span, Tally
from testbed.sim.timeline import Mark, Timeline, to_events
from tpi.errors import ConfigError
from tpi.model_config import DTYPE_BYTES, ModelConfig
from tpi.planner.memory import memory_parts
from tpi.ranks import MASTER_RANK
from tpi.weights.shard import make_shard_plan

_LAYER_TENSORS = 9  # seven matrices and two norms


@dataclass(frozen=True, slots=True)
class _Plan:
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


def transformers(run: SimRun, calibration: Calibration) -> SimOutcome:
    """Plain Transformers."""
    dtype = run.compute.dtype
    total = num_elements(run.model)[2]
    stored, weights = total * DTYPE_BYTES[run.storage], total * DTYPE_BYTES[dtype]
    maps = bool(run.options.get("mmap", True))
    views = maps and bool(run.options.get("low_cpu_mem_usage", True)) and run.storage == dtype
    base, anon = calibration.library_bytes, calibration.library_anon_bytes
    steady = anon + (0 if views else weights)
    # The checkpoint beside it while it loads: mapped pages as far as there is room, or read bytes.
    beside = 0 if views else stored
    peak = steady + (0 if maps else beside)
    plan = _Plan(
        anon=peak,
        steady=steady,
        rss=base + weights + (_fitting(run.devices[0], peak, beside) if maps else beside),
        cached=weights if views else 0,
        mapped=weights if views else 0,
        hooks_s=0.0,
        load_bytes=0 if views else stored,
        load_s=0.0 if views else calibration.cast_s(stored, run.storage, dtype),
    )
    return _serve(run, calibration, plan)


def accelerate(run: SimRun, calibration: Calibration) -> SimOutcome:
    """Accelerate's disk offload as of today: weights come from the checkpoint's own files."""
    model, dtype = run.model, run.compute.dtype
    layer, head, total = num_elements(model)
    stored, weights = total * DTYPE_BYTES[run.storage], total * DTYPE_BYTES[dtype]
    kept = _kept(run, weights, max(layer, head) * DTYPE_BYTES[dtype])
    offloaded = round(stored * (1 - kept / weights))
    casts = run.storage != dtype
    largest = head * DTYPE_BYTES[dtype]
    anon = calibration.library_anon_bytes + kept + (2 * largest if casts else 0)
    moving_s = (
        calibration.cast_s(offloaded, run.storage, dtype)
        if casts
        else offloaded / calibration.page_in_bps
    )
    # What is cast leaves its file mapped, page by page.
    mapped = _fitting(run.devices[0], anon, offloaded) if casts else largest // 2
    plan = _Plan(
        anon=anon, steady=anon,
        rss=anon + calibration.library_bytes - calibration.library_anon_bytes + mapped,
        cached=offloaded, mapped=mapped,
        hooks_s=moving_s + _tensors(model) * calibration.hook_s * offloaded / stored,
        load_bytes=round(stored * kept / weights), load_s=kept / 1e9,
    )  # fmt: skip
    return _serve(run, calibration, plan)


def _kept(run: SimRun, weights: int, largest: int) -> int:
    """Bytes of weights that stay in memory: all modules but for room for the largest."""
    limit = run.options.get("max_memory")
    if limit is None:
        return 0
    if not isinstance(limit, int):
        raise ConfigError(f"accelerate: max_memory: expected bytes or null, got {limit!r}")
    return weights if limit >= weights + largest else max(0, limit - largest)


def accelerate_2024(run: SimRun, calibration: Calibration) -> SimOutcome:
    """Accelerate as the paper met it: everything is loaded, then written out, then read."""
    total, dtype = num_elements(run.model)[2], run.compute.dtype
    stored, weights = total * DTYPE_BYTES[run.storage], total * DTYPE_BYTES[dtype]
    # Its files are memory maps in the dtype of the arithmetic: pages come in, nothing is converted.
    moving_s = weights / calibration.page_in_bps
    anon = calibration.library_anon_bytes
    largest = num_elements(run.model)[1] * DTYPE_BYTES[dtype]
    plan = _Plan(
        anon=anon + weights, steady=anon + largest,
        rss=calibration.library_bytes + weights + stored, cached=weights,
        hooks_s=moving_s + _tensors(run.model) * calibration.hook_s,
        load_bytes=stored, load_s=calibration.cast_s(stored, run.storage, dtype),
        written=weights,
    )  # fmt: skip
    return _serve(run, calibration, plan)


def _tensors(model: ModelConfig) -> int:
    return _LAYER_TENSORS * model.num_layers + 3


def _fitting(device: SimDevice, anon: int, wanted: int) -> int:
    """Of bytes of files, those that memory has room for beside what is anonymous."""
    return wanted if device.memory is None else max(0, min(wanted, device.memory - anon))


def _serve(run: SimRun, calibration: Calibration, plan: _Plan) -> SimOutcome:
    """One start and one request of a warm process."""
    if run.world_size != 1:
        raise ConfigError(f"{run.system}: takes one device, got {run.world_size}")
    device = run.devices[0]
    # What is loaded more than once is one copy again before a request comes.
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

    def __init__(self, run: SimRun, calibration: Calibration, plan: _Plan, now_s: float) -> None:
        self.spans: list[Span] = []
        self._run, self._calibration, self._plan = run, calibration, plan
        self._now_s, self._compute_s, self._wait_s, self._disk = now_s, 0.0, 0.0, 0
        device = run.devices[0]
        self._cores = device.cores
        disk_bps = device.disk_read_bps or calibration.disk_read_bps
        fits = _fitting(device, plan.steady, plan.cached) >= plan.cached
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
