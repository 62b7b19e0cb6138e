"""What an allreduce is: the code that runs, its cost in closed form, its messages for a simulator.

A new one derives from `AllReduceAlgorithm`, in a module beside this one or in a package of its
own, which names the class as an entry point of the group `tpi.allreduces`. `run` must be there;
without `closed_form_s` it cannot be planned, without `simulate` not be simulated, and the error
says so. Modules of allreduces import neither torch nor NumPy, which planning does without.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, NoReturn, Protocol

from tpi.errors import ConfigError

if TYPE_CHECKING:
    from tpi.comm.allreduces.call import Call


class MessageNetwork(Protocol):
    """The messages of one sum, in elements; a simulator gives each its time, a counter counts."""

    @property
    def world_size(self) -> int:
        """Number of ranks."""

    def gather(self, sources: Sequence[int], target: int, count: int) -> None:
        """Every source sends `count` elements to the target, which adds them to its own."""

    def scatter(self, source: int, targets: Sequence[int], count: int) -> None:
        """The source sends `count` elements to every target, one after another."""

    def scatter_and_gather(self, centre: int, others: Sequence[int], down: int, up: int) -> None:
        """Like `scatter` of `down`, then `gather` of `up`; but the others send before they wait."""

    def turn(self, counts: Sequence[int], *, adds: bool) -> None:
        """Rank r sends `counts[r]` elements to rank r + 1, all at once; 0 is no message."""

    def swap_slices(self, counts: Sequence[int]) -> None:
        """Every rank sends `counts[p]` elements to every peer p, which adds them to its own."""

    def swap(self, counts: Sequence[int], *, adds: bool) -> None:
        """Rank r sends the same `counts[r]` elements to every peer."""


class AllReduceAlgorithm:
    """One way to a sum that every rank gets. It has no state; one instance serves all ranks.

    Attributes:
        name: What `allreduce=` and `--allreduce` call it.
        needs_peer_links: Whether workers send to each other, or to the master alone.
        inbox_is_by_rank: Whether place i of the master's inbox holds all of the i-th worker's
            vector at the end, so that the master can tell whose part is not finite.
        in_paper: Whether arXiv:2410.00531 gives its cost (`published_s`, `published_traversals`).
    """

    name: ClassVar[str]
    needs_peer_links: ClassVar[bool] = True
    inbox_is_by_rank: ClassVar[bool] = False
    in_paper: ClassVar[bool] = False

    def run(self, call: "Call", num_elements: int) -> None:
        """Leave the sum over all ranks in the vector of the call, the same bits on every rank."""
        self._lacks("run", "how it runs")

    def simulate(self, network: MessageNetwork, num_elements: int) -> None:
        """Send the messages of `run` on an abstract network, in their order."""
        self._lacks("simulate", "which messages it sends")

    def closed_form_s(self, world_size: int, delay_s: float, payload_s: float) -> float:
        """Return the least time between two ranks or more; see `cost_s`.

        Args:
            world_size: Devices.
            delay_s: One-way delay between two devices.
            payload_s: What the vector of one rank takes a port.
        """
        self._lacks("closed_form_s", "what it costs")

    def inbox_chunks(self, world_size: int) -> int:
        """Most chunks that a worker's inbox ever holds; the planner counts them as memory."""
        return world_size - 1

    def published_s(
        self, *, data_s: float, link_s: float, barrier_s: float = 0.0, aggr_s: float = 0.0
    ) -> float:
        """Return the paper's cost of a sum between a master and two workers behind one router.

        Args:
            data_s: Sending one payload over the path.
            link_s: One traversal from device to device.
            barrier_s: Waiting for the slowest.
            aggr_s: Adding two payloads.

        Source: arXiv:2410.00531, appendix A.1, before eq. (11).
        """
        self._is_not_in_paper()

    def published_traversals(self, world_size: int) -> int:
        """Return how many paths are passed one after another.

        Source: arXiv:2410.00531, Prop. 1 and 2; the general number of devices is ours.
        """
        self._is_not_in_paper()

    def cost_s(self, *, world_size: int, num_bytes: int, delay_s: float, rate_bps: float) -> float:
        """Return the least time of one sum, payloads passing each port one after another.

        Args:
            world_size: Devices.
            num_bytes: Payload of one rank.
            delay_s: One-way delay between two devices.
            rate_bps: Bits per second of every device's port, each way.
        """
        if world_size == 1:
            return 0.0
        return self.closed_form_s(world_size, delay_s, 8 * num_bytes / rate_bps)

    def published_link_s(
        self, *, hop_s: float, world_size: int = 8, hops_per_path: int = 4
    ) -> float:
        """Return the latency part of one sum on the paper's testbed.

        Source: arXiv:2410.00531, Prop. 1 and 2, topology of A.7 (four links between two devices).
        """
        return self.published_traversals(world_size) * hops_per_path * hop_s

    def _lacks(self, method: str, what: str) -> NoReturn:
        raise ConfigError(
            f"allreduce {self.name}: {type(self).__name__} does not say {what}: it has no {method}"
        )

    def _is_not_in_paper(self) -> NoReturn:
        raise ConfigError(f"allreduce: the paper gives no cost for {self.name!r}")
