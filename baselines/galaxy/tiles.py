"""Which rows of a step each rank of Galaxy owns, and what a step sends. Pure: no torch, no I/O.

A tile is the rows (positions) that one rank owns between the blocks: it holds their residual
stream and norms them. A rank that lacks heads or columns has no norm weights of that block, so it
owns no rows, and only hands on what passes. `traffic` is the closed form of what goes over the
wire; tests hold the counters of real runs against it.
"""

from itertools import pairwise

from tpi.comm.allreduces.traffic import traffic as sum_traffic
from tpi.comm.topology import chunks, slices
from tpi.comm.wire import HEADER_BYTES
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


def traffic(
    plan: ShardPlan, rank: int, num_rows: int, num_layers: int, hidden_size: int
) -> tuple[int, int]:
    """Messages and bytes (headers included) that a rank sends in one step of one sequence."""
    if plan.world_size == 1:
        return 0, 0
    sizes = [num_rows * hidden_size] * (plan.world_size - 1) if rank == 0 else []  # the broadcast
    if not splits_rows(plan, num_rows):
        return _decode(plan, rank, num_rows, num_layers, hidden_size, sizes)
    tiles = make_tiles(plan, num_rows)
    rows = [stop - start for start, stop in tiles]
    others = range(plan.world_size - 1)
    gather = [rows[(rank - turn) % plan.world_size] for turn in others]
    scatter = [rows[(rank - turn - 1) % plan.world_size] for turn in others]
    sent = (2 * num_layers - 1) * gather + 2 * num_layers * scatter
    sizes += [count * hidden_size for count in sent if count]
    if rank == last_owner(tiles) and rank != 0:
        sizes.append(hidden_size)
    return len(sizes), sum(HEADER_BYTES + 4 * size for size in sizes)


def _decode(
    plan: ShardPlan, rank: int, num_rows: int, num_layers: int, hidden_size: int, sizes: list[int]
) -> tuple[int, int]:
    """The same where the ring runs over the width: TPI-LLM's sums by ring, the last one a star."""
    count = num_rows * hidden_size
    messages, num_bytes = sum_traffic("ring", rank, plan.world_size, count, 4)
    if rank != 0:
        sizes = [stop - start for start, stop in chunks(count)]
    return (
        len(sizes) + (2 * num_layers - 1) * messages,
        sum(HEADER_BYTES + 4 * size for size in sizes) + (2 * num_layers - 1) * num_bytes,
    )
