"""What an allreduce costs: the paper's formulas, and ours with the port that payloads share. Pure.

`published_*` is what arXiv:2410.00531 says; `ours_*` adds what it leaves out, above all that the
star's payloads pass the master's port one after another. Units: seconds, bytes, bits per second.
"""

from tpi.comm.topology import ALGORITHMS, make_tree
from tpi.errors import ConfigError


def published_allreduce_s(
    algorithm: str, *, data_s: float, link_s: float, barrier_s: float = 0.0, aggr_s: float = 0.0
) -> float:
    """Return the cost of one allreduce between a master and two workers behind one router.

    Args:
        algorithm: "star", "tree" or "ring".
        data_s: Sending one payload over the path.
        link_s: One traversal from device to device.
        barrier_s: Waiting for the slowest.
        aggr_s: Adding two payloads.

    Source: arXiv:2410.00531, appendix A.1, before eq. (11). The star's payloads pass the master's
    port at the same time there; see `ours_allreduce_s`.
    """
    if algorithm == "star":
        return 2 * (data_s + link_s) + barrier_s + aggr_s
    if algorithm == "tree":
        return 3 * data_s + 4 * link_s + 2 * barrier_s + 2 * aggr_s
    if algorithm == "ring":
        return 4 / 3 * data_s + 4 * link_s + 3 * barrier_s + 2 / 3 * aggr_s
    raise ConfigError(f"allreduce: the paper gives no cost for {algorithm!r}")


def published_link_latency_s(
    algorithm: str, *, hop_s: float, world_size: int = 8, hops_per_path: int = 4
) -> float:
    """Return the latency part of one allreduce on the paper's testbed: 8, 16 or 56 hops.

    Source: arXiv:2410.00531, Prop. 1 and 2, topology of A.7 (four links between any two devices);
    the general number of devices is ours: 2, 4 or 2 (N - 1) traversals.
    """
    traversals = {"star": 2, "tree": 4, "ring": 2 * (world_size - 1)}
    if algorithm not in traversals:
        raise ConfigError(f"allreduce: the paper gives no cost for {algorithm!r}")
    return traversals[algorithm] * hops_per_path * hop_s


def published_token_allreduce_s(num_layers: int, allreduce_s: float) -> float:
    """Return the allreduce time of one token. Source: arXiv:2410.00531, section 3.2: 2L of them."""
    return 2 * num_layers * allreduce_s


def ours_token_allreduce_s(num_layers: int, allreduce_s: float, one_way_s: float) -> float:
    """Return the same for this implementation: 2L - 1 allreduces, one reduce, one broadcast.

    The last sum need only reach the master, which broadcasts the next token's hidden state.
    """
    return (2 * num_layers - 1) * allreduce_s + 2 * one_way_s


def ours_allreduce_s(
    algorithm: str, *, world_size: int, num_bytes: int, delay_s: float, rate_bps: float
) -> float:
    """Return the least time of one allreduce, payloads passing each port one after another.

    With d one way, S the payload's time at a port, N devices:
    star 2 d + 2 (N - 1) S; tree twice the way to the root, whose port takes the sums of its
    children as they come (child with c leaves: after d + c S, then d and S each); ring
    2 (N - 1) (d + S / N); direct 2 d + 2 (N - 1) S / N; exchange d + (N - 1) S.

    Args:
        algorithm: One of ALGORITHMS.
        world_size: Devices.
        num_bytes: Payload of one rank.
        delay_s: One-way delay between two devices.
        rate_bps: Bits per second of every device's port, each way.
    """
    if algorithm not in ALGORITHMS:
        raise ConfigError(f"allreduce: got {algorithm!r}, expected one of {', '.join(ALGORITHMS)}")
    if world_size == 1:
        return 0.0
    others, payload_s = world_size - 1, 8 * num_bytes / rate_bps
    if algorithm == "tree":
        return 2 * _to_root_s(world_size, delay_s, payload_s)
    return {
        "star": 2 * delay_s + 2 * others * payload_s,
        "ring": 2 * others * (delay_s + payload_s / world_size),
        "direct": 2 * delay_s + 2 * others * payload_s / world_size,
        "exchange": delay_s + others * payload_s,
    }[algorithm]


def ours_chained_star_s(
    *, world_size: int, num_bytes: int, delay_s: float, rate_bps: float
) -> float:
    """Return the star's cost where one follows another: early ranks begin the next: 2 d + N S."""
    if world_size == 1:
        return 0.0
    return 2 * delay_s + world_size * 8 * num_bytes / rate_bps


def _to_root_s(world_size: int, delay_s: float, payload_s: float) -> float:
    """Until the root of the tree has every sum; the way back is the same in reverse."""
    leaves = [
        len(make_tree(child, world_size).children) for child in make_tree(0, world_size).children
    ]
    ready = sorted(delay_s + count * payload_s if count else 0.0 for count in leaves)
    free_s = 0.0
    for ready_s in ready:
        free_s = max(free_s, ready_s + delay_s) + payload_s
    return free_s
