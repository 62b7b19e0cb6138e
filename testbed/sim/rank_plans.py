"""What each rank of a tensor-parallel system holds, streams and needs in memory.

Sizes are those of the real shard folders, and windows those that the real engine chooses
(`tpi.planner.memory`). All layers are alike, so one of them is laid out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from testbed.sim.base import SimRun
from tpi.model_config import ModelConfig
from tpi.planner.memory import WindowChoice, block_bytes, choose_window
from tpi.ranks import MASTER_RANK
from tpi.weights.shard import BlockId, ShardPlan, make_shard_plan

# Of a process's peak, what is mapped from files and so no anonymous memory: torch's libraries.
# The records of 16 ranks in containers have 92.2 to 92.5 million bytes of it.
MAPPED_BYTES = 92_300_000


@dataclass(frozen=True, slots=True)
class RankPlan:
    """One rank's blocks and its window.

    Attributes:
        attn: Bytes of each of its attn blocks, 0 if it has none; `ffn` of each ffn block.
        head: Bytes of its head tiles, in order (master only).
        heads: Its query heads.
    """

    attn: int
    ffn: int
    head: tuple[int, ...]
    heads: int
    choice: WindowChoice

    @property
    def window(self) -> int:
        """Streamed blocks in memory at once; 1 where nothing is streamed."""
        return self.choice.window or 1

    def streams(self, block: BlockId) -> bool:
        """Whether a block is read for every step."""
        return self.choice.window is not None and block not in self.choice.retained


def plan_ranks(run: SimRun) -> tuple[ShardPlan, tuple[RankPlan, ...]]:
    """Divide the model among the ranks; bad shares or budgets fail as in the real program."""
    plan = make_shard_plan(run.model, run.world_size, run.shares)
    one_layer = replace(run.model, num_layers=1)
    return plan, tuple(_plan_rank(run, plan, rank, one_layer) for rank in range(run.world_size))


def _plan_rank(run: SimRun, plan: ShardPlan, rank: int, one_layer: ModelConfig) -> RankPlan:
    sizes = block_bytes(one_layer, plan, rank, run.storage)
    by_kind = {
        kind: tuple(n for block, n in sizes if block.kind == kind)
        for kind in ("attn", "ffn", "head")
    }
    blocks = _in_order(run.model.num_layers, by_kind)
    choice = choose_window(run.model, plan, rank, blocks, run.compute)
    share = plan.shares[rank]
    return RankPlan(
        attn=sum(by_kind["attn"]),
        ffn=sum(by_kind["ffn"]),
        head=by_kind["head"] if rank == MASTER_RANK else (),
        heads=share.local_num_heads,
        choice=choice,
    )


def _in_order(
    num_layers: int, by_kind: Mapping[str, Sequence[int]]
) -> tuple[tuple[BlockId, int], ...]:
    layers = [
        (BlockId(kind, layer), num_bytes)
        for layer in range(num_layers)
        for kind in ("attn", "ffn")
        for num_bytes in by_kind[kind]
    ]
    tiles = [(BlockId("head", i), num_bytes) for i, num_bytes in enumerate(by_kind["head"])]
    return (*layers, *tiles)
