"""The pipeline's schedule: a rank computes its own layers, then hands the hidden state on.

As `baselines/pipeline/engine.py` and `stages.py`: layers in proportion to the devices' memories,
all of them resident; a step goes from rank to rank, the last one sends the last position back to
the master, which has the LM head.
"""

from dataclasses import replace

import numpy as np

from baselines.pipeline.stages import make_stages, stage_bytes, stage_peaks
from baselines.simulated import SimEngine, serve
from testbed.sim.base import SimOutcome, SimRun
from testbed.sim.calibration import Calibration
from testbed.sim.devices import Block
from tpi.options import ALL_BLOCKS
from tpi.planner.memory import block_bytes
from tpi.ranks import MASTER_RANK
from tpi.weights.shard import make_shard_plan


class PipelineEngine(SimEngine):
    """All ranks of one session."""

    def __init__(self, run: SimRun, calibration: Calibration) -> None:
        super().__init__(run, calibration, [1] * run.world_size)
        one = replace(run.model, num_layers=1)
        sizes = block_bytes(one, make_shard_plan(one, 1), MASTER_RANK, run.storage)
        self.bytes = {
            kind: [n for b, n in sizes if b.kind == kind] for kind in ("attn", "ffn", "head")
        }
        self.stages = make_stages(run.model, run.world_size, run.shares, run.storage)
        self.weights = [
            stage_bytes(run.model, rank, stage, run.storage)
            for rank, stage in enumerate(self.stages)
        ]

    def step(self, rows: int, start: int, *, want_logits: bool = True) -> None:
        """One pass of so many tokens behind `start` cached ones, from rank to rank."""
        now, size, width = self.devices.now, self.run.world_size, self.run.model.hidden_size
        num_bytes, embed_ns = self.costs.embed(rows)
        self.devices.tally.disk[MASTER_RANK] += num_bytes
        now[MASTER_RANK] += embed_ns
        for rank in range(size):
            now[rank] += self._step_ns[rank]
            self._layers(rank, rows, start)
            if rank + 1 < size:
                self._send(rank, rank + 1, 4 * rows * width, counts=start > 0)
        if size > 1:
            self._send(size - 1, MASTER_RANK, 4 * width, counts=True)
        if want_logits:
            self._run(MASTER_RANK, "head.0", sum(self.bytes["head"]), 1, 0.0)

    def _layers(self, rank: int, rows: int, start: int) -> None:
        attend = float(self.costs.attend(rows, start, [self.run.model.num_heads])[0])
        for layer in self.stages[rank]:
            for kind, more_s in (("attn", attend), ("ffn", 0.0)):
                self._run(rank, f"{kind}.{layer}", self.bytes[kind][0], rows, more_s)

    def _run(self, rank: int, label: str, num_bytes: int, rows: int, more_s: float) -> None:
        seconds = float(self.costs.products([num_bytes], rows)[0]) + self.costs.block(rows) + more_s
        nothing = np.zeros(0, dtype=np.int64)
        block = Block(label, np.array([rank]), nothing, nothing, nothing)
        paging = self.costs.paging([num_bytes] * self.run.world_size)
        self.devices.run(block, self.costs.on_cores(seconds) + paging)

    def _send(self, source: int, target: int, num_bytes: int, *, counts: bool) -> None:
        """Send a message. With `counts`, the receiver's wait is part of the request."""
        before = self.devices.now.copy()
        self.network.scatter(
            self.devices.now, source, np.array([target]), self.network.message(num_bytes)
        )
        if not counts:
            before[target] = self.devices.now[target]
        self.devices.summed(before, f"to.{target}")


def simulate(run: SimRun, calibration: Calibration) -> SimOutcome:
    """Layer ranges on devices one after another."""
    engine = PipelineEngine(run, calibration)
    rss = stage_peaks(run.model, run.world_size, run.shares, run.storage, run.compute)
    windows = [{"window": ALL_BLOCKS, "retained": 0, "predicted_peak_bytes": peak} for peak in rss]
    return serve(engine, rss, engine.weights, windows)
