"""The pipeline's schedule: a rank computes its own layers, then hands the hidden state on.

As `baselines/pipeline/engine.py` and `stages.py`: layers in proportion to the devices' memories,
all of them resident; a step goes from rank to rank, the last one sends the last position back to
the master, which has the LM head. Read `PipelineEngine.step`.
"""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np

from baselines.tpi.simulate import notes_of, out_of_memory, resident
from testbed.sim.base import SimOutcome, SimRun
from testbed.sim.calibration import Calibration
from testbed.sim.costs import Costs
from testbed.sim.devices import Block, Devices
from testbed.sim.network import Network
from testbed.sim.rank_plans import MAPPED_BYTES
from testbed.sim.timeline import Mark, Timeline, to_events
from tpi.errors import ConfigError
from tpi.options import ALL_BLOCKS
from tpi.planner.memory import block_bytes, memory_parts
from tpi.ranks import MASTER_RANK
from tpi.weights.shard import make_shard_plan


def count_layers(
    num_layers: int, layer: int, head: int, world_size: int, shares: Sequence[float] | None
) -> list[int]:
    """Layers of each rank, at least one, so that the fullest is as empty as can be.

    Args:
        num_layers: To divide.
        layer: Bytes of one.
        head: Bytes that the master holds beside its own.
        world_size: Ranks.
        shares: Proportions of their memories; None for all alike.

    Raises:
        ConfigError: More ranks than layers, or not one share > 0 a rank.
    """
    if world_size > num_layers:
        raise ConfigError(f"pipeline: {world_size} devices, but the model has {num_layers} layers")
    weights = [Fraction(share) for share in shares or (1,) * world_size]
    if len(weights) != world_size or min(weights) <= 0:
        raise ConfigError(f"pipeline: expected {world_size} shares > 0, got {list(shares or ())}")
    counts = [1] * world_size

    def with_one_more(rank: int) -> tuple[Fraction, int]:
        extra = head if rank == MASTER_RANK else 0
        return ((counts[rank] + 1) * layer + extra) / weights[rank], rank

    heap = [with_one_more(rank) for rank in range(world_size)]
    heapq.heapify(heap)
    for _ in range(num_layers - world_size):
        rank = heap[0][1]
        counts[rank] += 1
        heapq.heapreplace(heap, with_one_more(rank))
    return counts


class PipelineEngine:
    """All ranks of one session."""

    def __init__(self, run: SimRun, calibration: Calibration) -> None:
        self.run = run
        self.costs = Costs(run, calibration)
        self.devices = Devices([1] * run.world_size, run.keep_spans)
        self.network = Network(run.links, [d.cores for d in run.devices], calibration)
        self._chunk = run.compute.prefill_chunk
        self._step_ns = self.costs.on_cores(calibration.step_s)
        one = replace(run.model, num_layers=1)
        sizes = block_bytes(one, make_shard_plan(one, 1), MASTER_RANK, run.storage)
        self.bytes = {
            kind: [n for b, n in sizes if b.kind == kind] for kind in ("attn", "ffn", "head")
        }
        layer, head = self.bytes["attn"][0] + self.bytes["ffn"][0], sum(self.bytes["head"])
        count, size = run.model.num_layers, run.world_size
        self.layers = count_layers(count, layer, head, size, run.shares)
        self.held = [
            n * layer + (head if r == MASTER_RANK else 0) for r, n in enumerate(self.layers)
        ]

    def request(self, new_tokens: int) -> Iterator[Mark]:
        """Make tokens; yields where all ranks are after each."""
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
        network = self.network
        return Mark(
            self.devices.now.copy(), self.devices.tally.copy(),
            network.messages.copy(), network.num_bytes.copy(),
        )  # fmt: skip

    def step(self, rows: int, start: int, *, want_logits: bool = True) -> None:
        """One pass of so many tokens behind `start` cached ones, from rank to rank."""
        now, size, width = self.devices.now, self.run.world_size, self.run.model.hidden_size
        num_bytes, embed_ns = self.costs.embed(rows)
        self.devices.tally.disk[MASTER_RANK] += num_bytes
        now[MASTER_RANK] += embed_ns
        first = 0
        for rank in range(size):
            now[rank] += self._step_ns[rank]
            self._layers(rank, first, rows, start)
            first += self.layers[rank]
            if rank + 1 < size:
                self._send(rank, rank + 1, 4 * rows * width, counts=start > 0)
        if size > 1:
            self._send(size - 1, MASTER_RANK, 4 * width, counts=True)
        if want_logits:
            self._run(MASTER_RANK, "head.0", sum(self.bytes["head"]), 1, 0.0)

    def _layers(self, rank: int, first: int, rows: int, start: int) -> None:
        attend = float(self.costs.attend(rows, start, [self.run.model.num_heads])[0])
        for layer in range(first, first + self.layers[rank]):
            for kind, more_s in (("attn", attend), ("ffn", 0.0)):
                self._run(rank, f"{kind}.{layer}", self.bytes[kind][0], rows, more_s)

    def _run(self, rank: int, label: str, num_bytes: int, rows: int, more_s: float) -> None:
        seconds = float(self.costs.products([num_bytes], rows)[0]) + self.costs.block(rows) + more_s
        nothing = np.zeros(0, dtype=np.int64)
        block = Block(label, np.array([rank]), nothing, nothing, nothing)
        paging = self.costs.paging([num_bytes] * self.run.world_size)
        self.devices.run(block, self.costs.on_cores(seconds) + paging)

    def _send(self, source: int, target: int, num_bytes: int, *, counts: bool) -> None:
        """`counts`: a wait within a request is a cost; that for its beginning is nobody's."""
        before = self.devices.now.copy()
        self.network.scatter(
            self.devices.now, source, np.array([target]), self.network.message(num_bytes)
        )
        if not counts:
            before[target] = self.devices.now[target]
        self.devices.summed(before, f"to.{target}")


def pipeline(run: SimRun, calibration: Calibration) -> SimOutcome:
    """Layer ranges on devices one after another."""
    engine = PipelineEngine(run, calibration)
    rss = tuple(_peak(run, engine, rank) for rank in range(run.world_size))
    anon = tuple(peak - MAPPED_BYTES for peak in rss)
    if reason := out_of_memory(run.devices, anon):
        return SimOutcome((), rss, anon, "oom", reason)
    engine.costs.swap(anon, engine.held)
    load = engine.costs.read(np.array(engine.held, dtype=np.int64))
    ready = engine.costs.on_cores(calibration.start_s) + load
    engine.devices.start_at(go := int(ready.max()))
    first = engine.mark()
    tokens = tuple(engine.request(run.new_tokens))
    held = resident(run.devices, rss)
    timeline = Timeline(
        ready, go, first, tokens, held, engine.devices.spans,
        prefill_passes=engine.prefill_passes,
        ready_fields=[
            {"window": ALL_BLOCKS, "retained": 0, "predicted_peak_bytes": peak} for peak in rss
        ],
    )  # fmt: skip
    return SimOutcome(
        to_events(timeline), held, resident(run.devices, anon), notes=notes_of(run, anon)
    )


def _peak(run: SimRun, engine: PipelineEngine, rank: int) -> int:
    own = replace(run.model, num_layers=engine.layers[rank])
    parts = memory_parts(own, make_shard_plan(own, 1), MASTER_RANK, run.compute)
    logits = parts.logits if rank != MASTER_RANK else 0
    return engine.held[rank] + parts.total - logits
