"""The seam between collectives and what moves their frames: sockets, or memory in tests."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from tpi.comm.wire import Expect, FrameHeader
from tpi.ranks import Ranks


@dataclass(slots=True)
class Send:
    """A tensor or END frame to a peer; the payload is sent from where it lies.

    Not frozen: one is made a message, and a frozen one costs twice as much.
    """

    peer: int
    header: FrameHeader
    payload: memoryview | None = None


@dataclass(slots=True)
class Recv:
    """The next frame from a peer, and where its payload goes.

    `into` is exactly as long as the payload, or a function that gives such a place for the header
    that came (only for an `Expect` that leaves sizes open).
    """

    peer: int
    expect: Expect
    into: memoryview | Callable[[FrameHeader], memoryview]
    idle: bool = False  # the peer may take as long as it likes, if only it lives
    through: tuple[int, ...] = ()  # peers that work before this one: their progress is as good
    got: FrameHeader | None = None  # the header that came, once the frame is complete


@dataclass(slots=True)
class WireCounters:
    """Tensor frames sent and their bytes, headers included, without heartbeats and control."""

    bytes_sent: int = 0
    messages_sent: int = 0


class Transport(Protocol):
    """Frames between this rank and its peers, in order for each pair."""

    @property
    def ranks(self) -> Ranks:
        """Who this is."""

    @property
    def counters(self) -> WireCounters:
        """What went over the wire so far."""

    def transfer(
        self,
        sends: Sequence[Send],
        recvs: Sequence[Recv],
        on_recv: Callable[[int], None] | None = None,
    ) -> None:
        """Send and receive all at once, in both directions, until everything is done.

        At most one receive a peer. `on_recv` is called with the index of each receive as it
        completes, in any order.

        Raises:
            PeerLostError, PeerTimeoutError, PeerStalledError, FrameError: what a peer did.
            TpiError: of any class, as a peer reported it.
        """

    def check(self) -> None:
        """Raise if a peer has left, fallen silent or reported an error; never waits."""

    def give_up(self) -> None:
        """End a transfer of another thread with CommError, soon; nothing can follow but `abort`."""

    def abort(self, error: BaseException) -> None:
        """Tell all peers why the session ends, and close. Only the first call has an effect."""
