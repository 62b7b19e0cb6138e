"""Which rows of a step each rank of Galaxy owns. Pure: no torch, no I/O.

A tile is the rows (positions) that one rank owns between the blocks: it holds their residual
stream and norms them. A rank that lacks heads or columns has no norm weights of that block, so it
owns no rows and only passes frames on.
"""

from itertools import pairwise

from tpi.comm.allreduces.base import slices
from tpi.weights.shard import ShardPlan


def make_tiles(plan: ShardPlan, num_rows: int) -> tuple[tuple[int, int], ...]:
    """Cut the rows of a step into one tile a rank, in order of rank and evenly."""
    owns = [share.local_num_heads > 0 and share.local_ffn_size > 0 for share in plan.shares]
    parts = iter(slices(0, num_rows, sum(owns)))
    stops = [0]
    for own in owns:
        stops.append(next(parts)[1] if own else stops[-1])
    return tuple(pairwise(stops))


def splits_rows(plan: ShardPlan, num_rows: int) -> bool:
    """Whether a step of so many rows is split along the sequence; else along the width."""
    return 1 < plan.world_size <= num_rows and any(
        share.local_num_heads and share.local_ffn_size for share in plan.shares
    )


def last_owner(tiles: tuple[tuple[int, int], ...]) -> int:
    """The rank that owns the last row."""
    return next(rank for rank, tile in enumerate(tiles) if tile[1] == tiles[-1][1])
