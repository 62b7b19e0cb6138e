"""TPI-LLM's own schedule: `tpi`, `tpi-resident`, `transformers-window`, on any number of ranks.

A step is what `tpi/engine.py` does: the master reads the tokens' embedding and broadcasts the
hidden state. All walk the layers, with a sum after each block; the last sum goes to the master
alone, which applies the head tile by tile. Loaders run ahead meanwhile.
"""

import numpy as np

from baselines.simulated import SimEngine, serve
from testbed.sim.base import SimOutcome, SimRun
from testbed.sim.calibration import Calibration
from testbed.sim.collectives import Collectives
from testbed.sim.devices import Block
from testbed.sim.network import Ints
from testbed.sim.rank_plans import plan_ranks
from tpi.model_config import DTYPE_BYTES
from tpi.options import window_word
from tpi.planner.memory import WindowChoice
from tpi.ranks import MASTER_RANK
from tpi.weights.shard import BlockId


class Engine(SimEngine):
    """All ranks of one session."""

    def __init__(self, run: SimRun, calibration: Calibration) -> None:
        self.plan, self.ranks = plan_ranks(run)
        ranks = self.ranks
        super().__init__(run, calibration, [rank.window for rank in ranks])
        self.weights = [
            run.model.num_layers * (rank.attn + rank.ffn) + sum(rank.head) for rank in ranks
        ]
        self.collectives = Collectives(
            self.network,
            run.compute.allreduce,
            DTYPE_BYTES[run.compute.wire_dtype],
            self.costs.on_cores(calibration.sum_call_s),
        )
        layers = range(run.model.num_layers)
        self.layers = [(self._block("attn", i), self._block("ffn", i)) for i in layers]
        self.tiles = [self._tile(i) for i in range(len(ranks[MASTER_RANK].head))]

    def _block(self, kind: str, layer: int) -> Block | None:
        """A layer's block; None if no rank has a part of it."""
        sizes = [rank.attn if kind == "attn" else rank.ffn for rank in self.ranks]
        if not any(sizes):
            return None
        return self._make(BlockId(kind, layer), sizes)

    def _tile(self, index: int) -> Block:
        sizes = [0] * len(self.ranks)
        sizes[MASTER_RANK] = self.ranks[MASTER_RANK].head[index]
        return self._make(BlockId("head", index), sizes)

    def _make(self, block: BlockId, sizes: list[int]) -> Block:
        num_bytes = np.array(sizes, dtype=np.int64)
        streams = [n > 0 and r.streams(block) for n, r in zip(sizes, self.ranks, strict=True)]
        streamed = np.flatnonzero(streams)
        return Block(
            f"{block.kind}.{block.index}",
            ranks=None if all(sizes) else np.flatnonzero(num_bytes),
            streamed=streamed,
            load=self.costs.read(num_bytes)[streamed],
            num_bytes=num_bytes[streamed],
        )

    def blocks(self) -> list[Block]:
        """All blocks of a step, in order."""
        return [block for pair in self.layers for block in pair if block is not None] + self.tiles

    def step(self, rows: int, start: int, *, want_logits: bool = True) -> None:
        """One pass of so many tokens behind `start` cached ones."""
        began, spent = self.devices.now.copy(), self.devices.tally.copy()
        self.begin(rows)
        self.walk(rows, start)
        for tile in self.tiles:
            if want_logits:
                self.devices.run(tile, self._head_ns(tile))
            elif len(tile.streamed):
                self.devices.skip(tile)
        read = self.costs.read_work(self.devices.tally.disk - spent.disk)
        self.devices.share(began, spent, read)

    def begin(self, rows: int) -> None:
        """Embed, and send the hidden state to all."""
        num_bytes, embed_ns = self.costs.embed(rows)
        now = self.devices.now
        self.devices.tally.disk[MASTER_RANK] += num_bytes
        now[MASTER_RANK] += embed_ns
        self.collectives.broadcast(now, rows * self.run.model.hidden_size)
        now += self._step_ns

    def walk(self, rows: int, start: int) -> None:
        """All layers."""
        attn = self.attn_ns(rows, start)
        ffn = self.block_ns([rank.ffn for rank in self.ranks], rows)
        count, last = rows * self.run.model.hidden_size, len(self.layers) - 1
        for layer, (attn_block, ffn_block) in enumerate(self.layers):
            if attn_block is not None:
                self.devices.run(attn_block, attn)
            self._sum(f"attn.{layer}", count, to_all=True)
            if ffn_block is not None:
                self.devices.run(ffn_block, ffn)
            self._sum(f"ffn.{layer}", count, to_all=layer < last)

    def attn_ns(self, rows: int, start: int) -> Ints:
        """The time that each rank computes an attn block."""
        heads = [rank.heads for rank in self.ranks]
        products = self.costs.products([rank.attn for rank in self.ranks], rows)
        attend = self.costs.attend(rows, start, heads)
        paging = self.costs.paging([rank.attn for rank in self.ranks])
        return self.costs.on_cores(products + attend + self.costs.block(rows)) + paging

    def block_ns(self, num_bytes: list[int], rows: int) -> Ints:
        """The time that each rank computes a block of products."""
        seconds = self.costs.products(num_bytes, rows) + self.costs.block(rows)
        return self.costs.on_cores(seconds) + self.costs.paging(num_bytes)

    def _head_ns(self, tile: Block) -> Ints:
        sizes = [0] * len(self.ranks)
        sizes[MASTER_RANK] = self.ranks[MASTER_RANK].head[int(tile.label.split(".")[1])]
        return self.block_ns(sizes, 1)

    def _sum(self, label: str, count: int, *, to_all: bool) -> None:
        before = self.devices.now.copy()
        sums = self.collectives
        (sums.all_reduce if to_all else sums.reduce)(self.devices.now, count)
        if self.network.size > 1:
            self.devices.summed(before, label)


def simulate(run: SimRun, calibration: Calibration) -> SimOutcome:
    """TPI-LLM, with or without the memory scheduler, and the scheduler alone on one device."""
    return serve_ranks(Engine(run, calibration))


def serve_ranks(engine: Engine) -> SimOutcome:
    """One start and one request of ranks that have windows."""
    choices = [rank.choice for rank in engine.ranks]
    return serve(
        engine,
        tuple(choice.peak_bytes for choice in choices),
        [_kept_bytes(choice) for choice in choices],
        # As `tpi/program/node.py` says it.
        [
            {
                "window": window_word(choice.window),
                "retained": len(choice.retained),
                "predicted_peak_bytes": choice.peak_bytes,
            }
            for choice in choices
        ],
    )


def _kept_bytes(choice: WindowChoice) -> int:
    return choice.retained_bytes + (choice.arena_bytes if choice.window is None else 0)
