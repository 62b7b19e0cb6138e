"""Ranks as threads of one process, for tests: the same frames and checks, no sockets.

`MemoryMesh.group(n)` gives one mesh a rank. Frames go through queues as bytes; an error anywhere
reaches every rank that waits.
"""

import queue
import threading
import time
from collections.abc import Callable, Sequence

from tpi.comm.transport import Recv, Send, WireCounters
from tpi.comm.wire import HEADER_BYTES, FrameHeader, FrameType
from tpi.errors import CommError, FrameError, PeerTimeoutError, TpiError, error_from_code
from tpi.ranks import Ranks

_Frame = tuple[bytes, bytes]


class _Hub:
    """What the ranks of a group share."""

    def __init__(self, world_size: int, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        pairs = [(a, b) for a in range(world_size) for b in range(world_size)]
        self.queues: dict[tuple[int, int], queue.SimpleQueue[_Frame | None]] = {
            pair: queue.SimpleQueue() for pair in pairs
        }
        self.lock = threading.Lock()
        self.error: tuple[int, str, str] | None = None


class MemoryMesh:
    """One rank's part of a group; a `Transport` and a context manager."""

    def __init__(self, ranks: Ranks, hub: _Hub) -> None:
        self.ranks = ranks
        self.counters = WireCounters()
        self._hub = hub
        self._sent = [0] * ranks.world_size
        self._received = [0] * ranks.world_size
        self._closed = False

    @classmethod
    def group(cls, world_size: int, timeout_s: float = 10.0) -> list["MemoryMesh"]:
        """A mesh for every rank; nobody waits longer than `timeout_s` for a frame."""
        hub = _Hub(world_size, timeout_s)
        return [cls(Ranks(rank, world_size), hub) for rank in range(world_size)]

    def transfer(
        self,
        sends: Sequence[Send],
        recvs: Sequence[Recv],
        on_recv: Callable[[int], None] | None = None,
    ) -> None:
        """See `Transport.transfer`; every frame is copied."""
        if self._closed:
            raise CommError("the connections of this rank are closed")
        for send in sends:
            self._send(send)
        for index, recv in enumerate(recvs):
            self._recv(recv)
            if on_recv is not None:
                on_recv(index)

    def _send(self, send: Send) -> None:
        head = send.header.encode_as(send.header.epoch, self._sent[send.peer])
        payload = b"" if send.payload is None else bytes(send.payload)
        self._sent[send.peer] += 1
        if send.header.kind is FrameType.TENSOR:
            self.counters.messages_sent += 1
            self.counters.bytes_sent += HEADER_BYTES + len(payload)
        self._hub.queues[self.ranks.rank, send.peer].put((head, payload))

    def _recv(self, recv: Recv) -> None:
        head, payload = self._next(recv.peer)
        header = FrameHeader.decode(head)
        try:
            recv.expect.check(header)
            if header.sequence != self._received[recv.peer]:
                raise FrameError(f"sequence: got {header.sequence}")
        except FrameError as exc:
            raise FrameError(f"rank {recv.peer}: {exc}") from exc
        self._received[recv.peer] += 1
        if header.kind is FrameType.TENSOR:
            into = recv.into if isinstance(recv.into, memoryview) else recv.into(header)
            into[:] = payload
        recv.got = header

    def _next(self, peer: int) -> _Frame:
        deadline = time.monotonic() + self._hub.timeout_s
        frames = self._hub.queues[peer, self.ranks.rank]
        try:
            frame = frames.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            raise PeerTimeoutError(f"rank {peer} is silent for {self._hub.timeout_s:g} s") from None
        if frame is None:
            frames.put(None)
            raise self._reported()
        return frame

    def _reported(self) -> TpiError:
        rank, code, message = self._hub.error or (self.ranks.rank, "peer_lost", "closed")
        return error_from_code(code, f"rank {rank} reported: {message}")

    def check(self) -> None:
        """Raise what another rank has reported."""
        if self._hub.error is not None and not self._closed:
            raise self._reported()

    def give_up(self) -> None:
        """End a receive of another thread."""
        for peer in self.ranks.peers:
            self._hub.queues[peer, self.ranks.rank].put(None)

    def abort(self, error: BaseException) -> None:
        """Wake every rank with this error; the first one wins."""
        self._closed = True
        with self._hub.lock:
            if self._hub.error is not None:
                return
            self._hub.error = (self.ranks.rank, getattr(error, "code", "peer_lost"), str(error))
        for frames in self._hub.queues.values():
            frames.put(None)

    def end(self) -> None:
        """Close this rank's part."""
        self._closed = True

    def __enter__(self) -> "MemoryMesh":
        return self

    def __exit__(self, kind: object, exc: BaseException | None, traceback: object) -> None:
        if exc is None:
            self.end()
        else:
            self.abort(exc)
