"""The ring: slices travel round and are summed on the way; then the sums travel round."""

from tpi.comm.allreduces.base import AllReduceAlgorithm, Call, MessageNetwork, chunks, slices


class Ring(AllReduceAlgorithm):
    """Adds along the ring, and rounds at every hop.

    Cost: 2 (N - 1) messages a rank of S / N bytes: 2 (N - 1) (d + S / (N B)).
    """

    name = "ring"
    in_paper = True

    def run(self, call: Call, num_elements: int) -> None:
        """In turn t rank r sends slice r - t and gets r - t - 1; then, one further, the sums."""
        ranks = call.transport.ranks
        size, right, left = ranks.world_size, (ranks.rank + 1) % ranks.world_size, ranks.rank - 1
        left %= size
        for start, stop in chunks(num_elements):
            parts = slices(start, stop, size)
            for turn in range(size - 1):
                out, into = parts[(ranks.rank - turn) % size], parts[(ranks.rank - turn - 1) % size]
                call.vector.pack(*out)
                recvs = call.recvs([left], *into)
                call.vector.round(*into)
                call.transport.transfer(
                    call.sends([right], *out), recvs, call.adder(len(recvs), *into)
                )
            call.vector.round(*parts[right])
            for turn in range(size - 1):
                out, into = parts[(right - turn) % size], parts[(ranks.rank - turn) % size]
                call.transport.transfer(call.sends([right], *out), call.recv_in_place(left, *into))
                call.vector.unpack(*into)

    def simulate(self, network: MessageNetwork, num_elements: int) -> None:
        """The turns of `run`, all ranks at once."""
        size = network.world_size
        for start, stop in chunks(num_elements):
            counts = [b - a for a, b in slices(start, stop, size)]
            for first, adds in ((0, True), (1, False)):
                for turn in range(size - 1):
                    # Rank r sends slice r + first - turn.
                    cut = (first - turn) % size
                    network.turn(counts[cut:] + counts[:cut], adds=adds)

    def closed_form_s(self, world_size: int, delay_s: float, payload_s: float) -> float:
        """Every turn takes a delay and a slice."""
        return 2 * (world_size - 1) * (delay_s + payload_s / world_size)

    def inbox_chunks(self, world_size: int) -> int:
        """A slice at a time."""
        return 1

    def published_traversals(self, world_size: int) -> int:
        """One a turn."""
        return 2 * (world_size - 1)
