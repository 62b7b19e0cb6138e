"""Direct: every rank sums one slice and sends it to all, straight between all pairs."""

from tpi.comm.allreduces.base import AllReduceAlgorithm, Call, MessageNetwork, chunks, slices


class Direct(AllReduceAlgorithm):
    """Sums in order of rank: the same bits as the star.

    Cost: 2 (N - 1) messages a rank of S / N bytes: 2 d + 2 (N - 1) S / (N B), every port alike.
    """

    name = "direct"

    def run(self, call: Call, num_elements: int) -> None:
        """Swap slices, sum our own, swap sums."""
        ranks = call.transport.ranks
        for start, stop in chunks(num_elements):
            parts = slices(start, stop, ranks.world_size)
            mine = parts[ranks.rank]
            call.vector.round(start, stop)
            sends = [s for p in ranks.peers for s in call.sends([p], *parts[p])]
            call.transport.transfer(sends, call.recvs(ranks.peers, *mine))
            call.sum_by_rank(*mine)
            call.vector.round(*mine)
            recvs = [r for p in ranks.peers for r in call.recv_in_place(p, *parts[p])]
            call.transport.transfer(call.sends(ranks.peers, *mine), recvs)
            for peer in ranks.peers:
                call.vector.unpack(*parts[peer])

    def simulate(self, network: MessageNetwork, num_elements: int) -> None:
        """Slices to their owners, then their sums to all."""
        for start, stop in chunks(num_elements):
            counts = [b - a for a, b in slices(start, stop, network.world_size)]
            network.swap_slices(counts)
            network.swap(counts, adds=False)

    def closed_form_s(self, world_size: int, delay_s: float, payload_s: float) -> float:
        """All but its own slice leaves a rank's port, twice."""
        return 2 * delay_s + 2 * (world_size - 1) * payload_s / world_size

    def inbox_chunks(self, world_size: int) -> int:
        """A slice from each peer: less than a chunk in all."""
        return 1
