"""TPI-LLM's own schedule: `tpi`, `tpi-resident`, `transformers-window`, on any number of ranks.

A step is what `tpi/engine.py` does: the master reads the tokens' embedding and broadcasts the
hidden state; all walk the layers, a sum behind each block, the last one to the master alone; the
master applies the head tile by tile. Loaders run ahead meanwhile. Read `Engine.step`.
"""

from collections.abc import Iterator

import numpy as np

from testbed.sim.base import SimRun
from testbed.sim.calibration import Calibration
from testbed.sim.collectives import Collectives
from testbed.sim.costs import Costs
from testbed.sim.devices import Block, Devices
from testbed.sim.network import Ints, Network
from testbed.sim.rank_plans import NodeOptions, RankPlan
from testbed.sim.timeline import Mark
from tpi.model_config import DTYPE_BYTES
from tpi.ranks import MASTER_RANK
from tpi.weights.shard import BlockId


class Engine:
    """All ranks of one session.

    Attributes:
        devices: Their clocks.
        network: Their links.
    """

    def __init__(
        self,
        run: SimRun,
        calibration: Calibration,
        options: NodeOptions,
        ranks: tuple[RankPlan, ...],
    ) -> None:
        self.run = run
        self.ranks = ranks
        self.costs = Costs(run, calibration)
        self.devices = Devices([rank.window for rank in ranks], run.keep_spans)
        self.network = Network(run.links, [d.cores for d in run.devices], calibration)
        self._chunk = options.prefill_chunk
        self._step_ns = self.costs.on_cores(calibration.step_s)
        self.collectives = Collectives(
            self.network,
            options.allreduce,
            DTYPE_BYTES[options.wire_dtype],
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

    def blocks(self) -> Iterator[Block]:
        """All blocks of a step, in order."""
        for pair in self.layers:
            yield from (block for block in pair if block is not None)
        yield from self.tiles

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
        return Mark(
            self.devices.now.copy(),
            self.devices.tally.copy(),
            self.network.messages.copy(),
            self.network.num_bytes.copy(),
        )

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
        """What an attn block takes each rank to compute."""
        heads = [rank.heads for rank in self.ranks]
        products = self.costs.products([rank.attn for rank in self.ranks], rows)
        attend = self.costs.attend(rows, start, heads)
        paging = self.costs.paging([rank.attn for rank in self.ranks])
        return self.costs.on_cores(products + attend + self.costs.block(rows)) + paging

    def block_ns(self, num_bytes: list[int], rows: int) -> Ints:
        """What a block of products takes each rank to compute."""
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
