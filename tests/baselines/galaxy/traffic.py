"""What a step of Galaxy puts on the wire, in closed form."""

from baselines.galaxy.tiles import last_owner, make_tiles, splits_rows
from tests.comm.allreduces.traffic import traffic as sum_traffic
from tpi.comm.allreduces.base import chunks
from tpi.comm.wire import HEADER_BYTES
from tpi.weights.shard import ShardPlan


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
