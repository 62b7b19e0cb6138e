"""Galaxy's schedule: rings over rows that overlap with products in prefill, TPI-LLM's decode.

As `baselines/galaxy/engine.py`: a block norms its own tile of rows, gathers the others turn by
turn while it multiplies what it has, attends, and sums its result tile by tile on the way round.
"""

import numpy as np
from numpy.typing import NDArray

from baselines.galaxy.tiles import make_tiles, splits_rows
from baselines.tpi.schedule import Engine, serve_ranks
from testbed.sim.base import SimOutcome, SimRun
from testbed.sim.calibration import Calibration
from testbed.sim.devices import Span
from testbed.sim.network import Ints
from testbed.sim.ring_turns import Turn, end_turn, make_turn, start_turn
from tpi.ranks import MASTER_RANK


class GalaxyEngine(Engine):
    """All ranks of one session of Galaxy."""

    def __init__(self, run: SimRun, calibration: Calibration) -> None:
        super().__init__(run, calibration)
        plan, ranks = self.plan, self.ranks
        self._overlap = bool(run.options.get("overlap", True))
        self._courier_ns = self.costs.on_cores(calibration.sum_call_s)
        heads = np.array([s.local_num_heads for s in plan.shares], dtype=np.float64)
        kv = np.array([s.local_num_kv_heads for s in plan.shares], dtype=np.float64)
        attn = np.array([rank.attn for rank in ranks], dtype=np.float64)
        ffn = np.array([rank.ffn for rank in ranks], dtype=np.float64)
        into = np.divide(
            heads + 2 * kv, 2 * heads + 2 * kv, out=np.zeros_like(attn), where=heads > 0
        )
        # By kind: bytes of the matrices before the middle of the block, and of the one behind it.
        self._bytes = {"attn": (attn * into, attn * (1 - into)), "ffn": (ffn * 2 / 3, ffn / 3)}

    def walk(self, rows: int, start: int) -> None:
        """All layers; cut along the rows where there are enough of them."""
        if not splits_rows(self.plan, rows):
            super().walk(rows, start)
            return
        tiles = make_tiles(self.plan, rows)
        counts = np.array([stop - begin for begin, stop in tiles])
        prefill = _Prefill(self, counts)
        heads = [rank.heads for rank in self.ranks]
        attend = self.costs.on_cores(self.costs.attend(rows, start, heads))
        # Each rank has its part of the elements: rows of the norms, columns of the gate.
        block_ns = self.costs.on_cores(self.costs.block(max(1, rows // self.network.size)))
        for layer in range(len(self.layers)):
            for kind, middle in (("attn", attend), ("ffn", np.zeros_like(attend))):
                label = f"{kind}.{layer}"
                before, behind = self._bytes[kind]
                self.compute(block_ns + self.costs.paging(before + behind), label)
                prefill.gather(label, before, moves=layer > 0 or kind == "ffn")
                self.compute(middle, label)
                prefill.scatter(label, behind)
        self._last(counts)

    def _last(self, counts: Ints) -> None:
        """Bring the last position to the master."""
        owner = int(np.flatnonzero(counts)[-1])
        if owner == MASTER_RANK:
            return
        before = self.devices.now.copy()
        message = self.network.message(4 * self.run.model.hidden_size)
        self.network.gather(
            self.devices.now, np.array([owner]), MASTER_RANK, message, adds=False
        )  # fmt: skip
        self.devices.summed(before, "last")

    def compute(self, took: Ints, label: str) -> None:
        """Let every rank compute for so long."""
        devices = self.devices
        before = devices.now.copy()
        devices.now += took
        devices.tally.compute += took
        if devices.keep:
            ranks = np.arange(len(before))
            devices.spans.append(Span("compute", label, ranks, before, devices.now.copy()))

    def turn(self, turn: Turn, took: Ints, label: str) -> None:
        """A transfer while every rank computes for so long; without overlap one after the other."""
        devices, network = self.devices, self.network
        began, carried = devices.now.copy(), devices.now + self._courier_ns
        end_turn(carried, turn, start_turn(network, carried, turn))
        network.messages += turn.messages
        network.num_bytes += turn.num_bytes
        if not self._overlap:
            devices.now[:] = carried
            devices.summed(began, label)
            self.compute(took, label)
            return
        self.compute(took, label)
        # The courier's own work takes the same processor.
        busy = devices.now + turn.send + turn.work + self._courier_ns
        computed = devices.now.copy()
        np.maximum(busy, carried, out=devices.now)
        devices.summed(computed, label)


def simulate(run: SimRun, calibration: Calibration) -> SimOutcome:
    """Tensor and sequence parallelism on rings."""
    return serve_ranks(GalaxyEngine(run, calibration))


class _Prefill:
    """The turns of one step, which are the same in every layer."""

    def __init__(self, engine: GalaxyEngine, counts: Ints) -> None:
        self._engine = engine
        self._counts = counts
        size, ranks = len(counts), np.arange(len(counts))
        self._tile = [counts[(ranks - t) % size] for t in range(size + 1)]
        row_bytes = 4 * engine.run.model.hidden_size
        network = engine.network
        self._gather = [
            make_turn(network, self._tile[t] * row_bytes, adds=False) for t in range(size - 1)
        ]
        self._scatter = [
            make_turn(network, self._tile[t + 1] * row_bytes, adds=True) for t in range(size - 1)
        ]
        rows = range(1, int(counts.max()) + 1)
        ones = [0.0] * len(counts)
        ones[0] = 1.0
        each = [float(engine.costs.products(ones, k)[0]) for k in rows]
        self._second_per_byte = np.array([0.0, *each])
        self._all_rows = float(engine.costs.products(ones, int(counts.sum()))[0])

    def _product(self, num_bytes: NDArray[np.float64], rows: Ints) -> Ints:
        return self._engine.costs.on_cores(num_bytes * self._second_per_byte[rows])

    def gather(self, label: str, num_bytes: NDArray[np.float64], *, moves: bool) -> None:
        """Multiply each tile of rows while the next one travels; the first block has them all."""
        engine = self._engine
        if not moves:
            engine.compute(engine.costs.on_cores(num_bytes * self._all_rows), label)
            return
        for t, turn in enumerate(self._gather):
            engine.turn(turn, self._product(num_bytes, self._tile[t]), label)
        engine.compute(self._product(num_bytes, self._tile[len(self._gather)]), label)

    def scatter(self, label: str, num_bytes: NDArray[np.float64]) -> None:
        """Make each part of the sum while that of the tile before travels."""
        engine = self._engine
        engine.compute(self._product(num_bytes, self._tile[1]), label)
        for t, turn in enumerate(self._scatter):
            engine.turn(turn, self._product(num_bytes, self._tile[t + 2]), label)
