"""How long anything between two ranks may take, and what it means when it takes longer.

One timeout cannot tell a slow peer (it streams its weights from a poor disk) from a dead or a
stuck one. So there are three: a peer is dead when nothing at all comes from it, it is stuck when
it lives and its progress does not change, and a frame that has begun must end. Pure, so that it is
tested without waiting.
"""

from dataclasses import astuple, dataclass

from tpi.errors import PeerStalledError, PeerTimeoutError, TpiError


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Limits in seconds, on the monotonic clock."""

    join_s: float = 60.0  # from the start of a rank until all ranks are connected
    handshake_s: float = 5.0  # from the accept of a connection until its HELLO is complete
    frame_s: float = 30.0  # from the first byte of a frame until its last
    dead_s: float = 10.0  # without a byte from a peer that we wait for; heartbeats count
    stall_s: float = 120.0  # without progress of a living peer, or for it to take what we send
    abort_s: float = 2.0  # to tell all peers why the session ends
    heartbeat_s: float = 1.0  # between two heartbeats

    def scaled(self, time_scale: float) -> "Deadlines":
        """All of them times `time_scale` (> 1 on slow machines, < 1 in tests)."""
        return Deadlines(*(limit * time_scale for limit in astuple(self)))

    @property
    def tick_s(self) -> float:
        """How often a waiter looks at the clock: late by at most a twentieth, or 0.25 s."""
        return min(0.25, min(self.dead_s, self.stall_s, self.frame_s) / 20)


@dataclass(frozen=True, slots=True)
class Wait:
    """One peer that is waited for, at one moment; ages in seconds, all at least 0."""

    waited_s: float  # since this wait began
    silent_s: float  # since the last byte came from the peer, or since the wait began
    still_s: float  # since the peer's progress last changed, or since the wait began
    frame_s: float | None  # since the first byte of an unfinished frame; None if there is none
    receiving: bool  # a frame is expected from the peer
    sending: bool  # bytes to the peer are not yet taken
    idle: bool  # the peer may take as long as it likes, if only it lives
    peer_waits: bool  # the peer says that it waits for somebody else
    heard: bool  # heartbeats can be seen: not behind a frame that nobody reads yet
    done: str  # "n of m bytes" of the frame in either direction


def overdue(wait: Wait, limits: Deadlines, peer: int, where: str) -> TpiError | None:
    """The error that this wait has become, or None."""
    if wait.receiving and wait.frame_s is not None and wait.frame_s > limits.frame_s:
        return PeerStalledError(
            f"rank {peer}: a frame did not end within {limits.frame_s:g} s of its first byte, "
            f"after {wait.done}; {where}"
        )
    if wait.silent_s > limits.dead_s and wait.heard:
        return PeerTimeoutError(
            f"rank {peer} is silent: no byte and no heartbeat for {limits.dead_s:g} s, "
            f"after {wait.done}; {where}; is it paused, or its link down?"
        )
    if wait.sending and wait.waited_s > limits.stall_s:
        return PeerStalledError(
            f"rank {peer} lives but does not read: {wait.done} sent "
            f"in {limits.stall_s:g} s; {where}"
        )
    # A peer that itself waits is not the culprit; the rank that waits for that one says so first.
    stall_s = limits.stall_s * (2 if wait.peer_waits else 1)
    if wait.receiving and not wait.idle and wait.still_s > stall_s:
        return PeerStalledError(
            f"rank {peer} lives but made no progress for {stall_s:g} s, after {wait.done}; {where}"
        )
    return None
