"""Exchange: everybody sends everything to everybody, and all sum alike."""

from tpi.comm.allreduces.base import AllReduceAlgorithm, Call, MessageNetwork, chunks


class Exchange(AllReduceAlgorithm):
    """Sums in order of rank: the same bits as the star.

    Cost: N - 1 messages a rank of S bytes: d + (N - 1) S / B, one traversal only.
    """

    name = "exchange"
    inbox_is_by_rank = True

    def run(self, call: Call, num_elements: int) -> None:
        """Swap vectors, and sum."""
        peers = call.transport.ranks.peers
        for start, stop in chunks(num_elements):
            call.vector.round(start, stop)
            call.transport.transfer(call.sends(peers, start, stop), call.recvs(peers, start, stop))
            call.sum_by_rank(start, stop)
            call.vector.round(start, stop)

    def simulate(self, network: MessageNetwork, num_elements: int) -> None:
        """All pairs at once."""
        for start, stop in chunks(num_elements):
            network.swap([stop - start] * network.world_size, adds=True)

    def closed_form_s(self, world_size: int, delay_s: float, payload_s: float) -> float:
        """One traversal, and everybody's payload at every port."""
        return delay_s + (world_size - 1) * payload_s
