"""The star: all send to the master, which sums and sends to all. TPI-LLM's own choice."""

from collections.abc import Sequence

from tpi.comm.allreduces.base import AllReduceAlgorithm, Call, MessageNetwork, chunks
from tpi.comm.transport import Send
from tpi.ranks import MASTER_RANK


class Star(AllReduceAlgorithm):
    """Sums on the master, in order of rank.

    Cost: 2 (N - 1) messages, all through the master: 2 d + 2 (N - 1) S / B. The sum of a piece
    goes down while the next one comes up.
    """

    name = "star"
    needs_peer_links = False
    inbox_is_by_rank = True
    in_paper = True

    def run(self, call: Call, num_elements: int) -> None:
        """Send a piece up, and take the sum of the one before."""
        if call.transport.ranks.is_master:
            _run_master(call, list(chunks(num_elements)), call.transport.ranks.workers)
            return
        send_to: list[int] = [MASTER_RANK]
        back: tuple[int, int] | None = None
        for start, stop in chunks(num_elements):
            call.vector.pack(start, stop)
            recvs = call.recv_in_place(MASTER_RANK, *back) if back else []
            call.transport.transfer(call.sends(send_to, start, stop), recvs)
            if back:
                call.vector.unpack(*back)
            back = (start, stop)
        if back:
            call.transport.transfer([], call.recv_in_place(MASTER_RANK, *back))
            call.vector.unpack(*back)

    def simulate(self, network: MessageNetwork, num_elements: int) -> None:
        """While a piece comes up, the sum of the one before goes down."""
        workers, back = range(1, network.world_size), 0
        for start, stop in chunks(num_elements):
            if back:
                network.scatter_and_gather(MASTER_RANK, workers, down=back, up=stop - start)
            else:
                network.gather(workers, MASTER_RANK, stop - start)
            back = stop - start
        network.scatter(MASTER_RANK, workers, back)

    def closed_form_s(self, world_size: int, delay_s: float, payload_s: float) -> float:
        """Every payload passes the master's port, up and down."""
        return 2 * delay_s + 2 * (world_size - 1) * payload_s

    def chained_s(
        self, *, world_size: int, num_bytes: int, delay_s: float, rate_bps: float
    ) -> float:
        """Return the cost where one follows another: early ranks begin the next: 2 d + N S."""
        if world_size == 1:
            return 0.0
        return 2 * delay_s + world_size * 8 * num_bytes / rate_bps

    def inbox_chunks(self, world_size: int) -> int:
        """Workers take the sum in place; one chunk is touched at most."""
        return 1

    def published_traversals(self, world_size: int) -> int:
        """Up and down."""
        return 2


def _run_master(call: Call, pieces: Sequence[tuple[int, int]], workers: Sequence[int]) -> None:
    sends: list[Send] = []
    for start, stop in pieces:
        call.vector.round(start, stop)
        recvs = call.recvs(workers, start, stop)
        call.transport.transfer(sends, recvs, call.adder(len(recvs), start, stop))
        call.vector.round(start, stop)
        sends = call.sends(workers, start, stop)
    call.transport.transfer(sends, [])


def star_reduce(call: Call, num_elements: int) -> None:
    """All send to the master, which alone has the sum. Cost: N - 1 messages, d + (N - 1) S / B.

    The last sum of a step goes this way, whatever the allreduce.
    """
    ranks = call.transport.ranks
    for start, stop in chunks(num_elements):
        call.vector.round(start, stop)
        if ranks.is_master:
            recvs = call.recvs(ranks.workers, start, stop)
            call.transport.transfer([], recvs, call.adder(len(recvs), start, stop))
        else:
            call.transport.transfer(call.sends([MASTER_RANK], start, stop), [])
