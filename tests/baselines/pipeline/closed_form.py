"""What a pipeline sends, in closed form."""

from tpi.comm.wire import HEADER_BYTES


def traffic(rank: int, world_size: int, num_tokens: int, hidden_size: int) -> tuple[int, int]:
    """Messages and bytes (headers included) that a rank sends in one step of a sequence.

    Every rank but the last passes all positions on; the last sends one back to the master.
    """
    if world_size == 1:
        return 0, 0
    rows = num_tokens if rank < world_size - 1 else 1
    return 1, HEADER_BYTES + 4 * rows * hidden_size
