"""`SocketMesh`: the connections of one rank, and who waits how long for whom.

`transfer` starts all sends, posts all receives and sleeps in one `poll` over all peers until
everything is done, a peer is lost or reports an error, or a deadline has passed. `join.py` makes a
mesh; `Channel` moves the bytes of one peer.
"""

import logging
import select
import time
from collections.abc import Callable, Mapping, Sequence
from socket import socket

from tpi.comm.channel import HANGUP, POLLRDHUP, Channel, PeerAbortError
from tpi.comm.closing import settle
from tpi.comm.deadlines import Deadlines, Wait, overdue
from tpi.comm.messages import Abort
from tpi.comm.outbox import Heartbeat
from tpi.comm.transport import Recv, Send, WireCounters
from tpi.comm.wire import HEADER_BYTES, Flag, FrameHeader, FrameType, Op
from tpi.errors import CommError, FrameError, PeerLostError, TpiError
from tpi.ranks import Ranks

log = logging.getLogger(__name__)


class SocketMesh:
    """One rank's connected peers; a `Transport` and a context manager.

    Leaving the context with an error aborts the session for all ranks, without one it ends it.

    Args:
        ranks: Who this is.
        sockets: A connected stream socket for each peer there is a link to; they are taken over.
        epoch: 16 random bytes of this session; frames of another one are refused.
        deadlines: How long anything may take.
    """

    def __init__(
        self, ranks: Ranks, sockets: Mapping[int, socket], epoch: bytes, deadlines: Deadlines
    ) -> None:
        now_ns = time.monotonic_ns()
        self.ranks = ranks
        self.counters = WireCounters()
        self._epoch = epoch
        self._limits = deadlines
        self._tick_ns = int(deadlines.tick_s * 1e9)
        self._channels = {p: Channel(s, p, epoch, now_ns) for p, s in sorted(sockets.items())}
        self._by_fd = {channel.fd: channel for channel in self._channels.values()}
        self._poll = select.poll()
        self._masks = dict.fromkeys(self._by_fd, select.POLLIN | POLLRDHUP)
        for fd, mask in self._masks.items():
            self._poll.register(fd, mask)
        self._sending: set[int] = set()
        self._progress = (0, 0, Op.NONE)
        self._detail = 0
        self._waiting = False
        self._closed = False
        self._given_up = False
        self._reported: tuple[TpiError, Abort] | None = None
        self._watched_from_ns = self._watched_ns = now_ns
        self._heartbeat = Heartbeat(
            [c.outbox for c in self._channels.values()], self._beat_frame, deadlines.heartbeat_s
        )
        self._heartbeat.start()

    def transfer(
        self,
        sends: Sequence[Send],
        recvs: Sequence[Recv],
        on_recv: Callable[[int], None] | None = None,
    ) -> None:
        """See `Transport.transfer`."""
        if self._closed:
            raise CommError("the connections of this rank are closed")
        first = sends[0].header if sends else recvs[0].expect.header if recvs else None
        if first is None:
            return
        self._progress = (first.step, first.layer, first.op)
        done: list[int] = []
        since_ns = time.monotonic_ns()
        for index, recv in enumerate(recvs):
            self._post(recv, index, since_ns, done)
        for send in sends:
            self._send(send)
        left = len(recvs)
        next_check_ns = since_ns + self._tick_ns
        self._waiting = True
        try:
            while True:
                for index in done:
                    left -= 1
                    if on_recv is not None:
                        on_recv(index)
                if not left and not self._sending:
                    return
                # Read the clock before poll: what came up to then, poll reports, so that a pause
                # of this process itself never looks like the silence of a peer.
                now_ns = time.monotonic_ns()
                done = self._turn(now_ns, self._limits.tick_s)
                if now_ns >= next_check_ns:
                    self._check_deadlines(now_ns, since_ns)
                    next_check_ns = now_ns + self._tick_ns
        finally:
            self._waiting = False

    def _post(self, recv: Recv, index: int, now_ns: int, done: list[int]) -> None:
        channel = self._channels[recv.peer]
        was_pending = channel.pending is not None
        try:
            channel.post(recv, index, now_ns)
            if was_pending and channel.receive(now_ns):
                done.append(index)
        except (CommError, PeerAbortError) as exc:
            raise self._failed(channel, exc) from exc
        if was_pending:
            self._watch(channel)

    def _send(self, send: Send) -> None:
        channel = self._channels[send.peer]
        size = HEADER_BYTES + (len(send.payload) if send.payload is not None else 0)
        try:
            if not channel.send(send.header, send.payload):
                self._sending.add(send.peer)
                self._watch(channel)
        except CommError as exc:
            raise self._failed(channel, exc) from exc
        if send.header.kind is FrameType.TENSOR:
            self.counters.messages_sent += 1
            self.counters.bytes_sent += size

    def _turn(self, now_ns: int, timeout_s: float) -> list[int]:
        """Wait for any peer, read and write what is possible; which receives are complete now."""
        done = []
        for fd, events in self._poll.poll(timeout_s * 1e3):
            channel = self._by_fd[fd]
            try:
                if events & select.POLLOUT and channel.flush():
                    self._sending.discard(channel.peer)
                if events & (select.POLLIN | HANGUP):
                    if channel.pending is not None:
                        raise channel.lost()
                    if channel.receive(now_ns):
                        done.append(channel.index)
            except (CommError, PeerAbortError) as exc:
                raise self._failed(channel, exc) from exc
            self._watch(channel)
        return done

    def _watch(self, channel: Channel) -> None:
        """Ask poll for what matters about this peer now.

        Behind a frame that is not wanted yet nothing is read, so only a hang-up matters. Once a
        peer has ended the session nothing does.
        """
        mask = POLLRDHUP
        if channel.pending is None:
            mask |= select.POLLIN
        if channel.peer in self._sending:
            mask |= select.POLLOUT
        if channel.ended:
            mask = 0
        if mask != self._masks[channel.fd]:
            self._masks[channel.fd] = mask
            if mask:
                self._poll.register(channel.fd, mask)
            else:
                self._poll.unregister(channel.fd)

    def _failed(self, channel: Channel, exc: Exception) -> TpiError:
        """The error of a failed channel, with the place in the plan."""
        if isinstance(exc, PeerLostError):
            exc = channel.last_words() or exc
        if isinstance(exc, PeerAbortError):
            error = exc.error()
            self._reported = (error, exc.abort)
            return error
        if isinstance(exc, FrameError):
            return FrameError(f"rank {channel.peer}: {exc}; {self._place()}")
        return PeerLostError(f"{exc}; {self._place()}")

    def _place(self) -> str:
        step, layer, op = self._progress
        if op is Op.NONE:
            return f"rank {self.ranks.rank} was about to begin"
        place = FrameHeader(FrameType.TENSOR, step=step, layer=layer, op=op).describe()
        return f"rank {self.ranks.rank} was at the {place}"

    def _check_deadlines(self, now_ns: int, since_ns: int) -> None:
        if self._given_up:
            raise CommError("this rank has given up the transfer")
        for channel in self._channels.values():
            if channel.posted is not None or channel.peer in self._sending:
                self._check_channel(channel, now_ns, since_ns)

    def _check_channel(self, channel: Channel, now_ns: int, since_ns: int) -> None:
        recv = channel.posted
        through = recv.through if recv is not None else ()
        progress_ns = max(self._channels[p].progress_ns for p in (channel.peer, *through))
        wait = Wait(
            waited_s=(now_ns - since_ns) / 1e9,
            silent_s=(now_ns - max(since_ns, channel.life_ns)) / 1e9,
            still_s=(now_ns - max(since_ns, progress_ns)) / 1e9,
            frame_s=(now_ns - channel.frame_ns) / 1e9 if channel.frame_ns else None,
            receiving=recv is not None,
            sending=channel.peer in self._sending,
            idle=recv is not None and recv.idle,
            peer_waits=channel.peer_waits,
            heard=channel.pending is None,
            done=channel.progress_text(),
        )
        where = self._place()
        if through:
            where += f"; before it come ranks {', '.join(map(str, through))}"
        error = overdue(wait, self._limits, channel.peer, where)
        if error is not None:
            raise error

    def check(self) -> None:
        """Raise if a peer has left, fallen silent or reported an error; never waits.

        For a rank that waits for something else, such as a disk, and asks several times a second.
        """
        if self._closed:
            return
        now_ns = time.monotonic_ns()
        self._turn(now_ns, 0)
        if now_ns - self._watched_ns > 1e9:  # silence counts only while somebody listens
            self._watched_from_ns = now_ns
        self._watched_ns = now_ns
        for channel in self._channels.values():
            if channel.pending is None and not channel.ended:
                self._check_channel(channel, now_ns, self._watched_from_ns)

    def set_progress(self, detail: int) -> None:
        """Count progress that is not a transfer (such as bytes loaded); heartbeats carry it."""
        self._detail = detail & 0xFFFFFFFF

    def _beat_frame(self) -> bytes:
        step, layer, op = self._progress
        return FrameHeader(
            FrameType.HEARTBEAT, step=step, layer=layer, op=op, start=self._detail,
            flags=Flag.WAITING if self._waiting else 0, epoch=self._epoch,
        ).encode()  # fmt: skip

    def give_up(self) -> None:
        """End a transfer of another thread with CommError, within a tick."""
        self._given_up = True

    def abort(self, error: BaseException) -> None:
        """Tell all peers why the session ends, within `abort_s`, and close; the first call wins.

        An error that a peer reported is passed on under the rank that had it.
        """
        if self._reported is not None and self._reported[0] is error:
            reason = self._reported[1]
        elif isinstance(error, TpiError):
            reason = Abort(self.ranks.rank, error.code, str(error))
        else:
            why = f"rank {self.ranks.rank} is gone: {type(error).__name__} {error}"
            reason = Abort(self.ranks.rank, PeerLostError.code, why)
        body = reason.encode()
        header = FrameHeader(FrameType.ABORT, payload_bytes=len(body), epoch=self._epoch)
        self._close([header.encode(), body])

    def end(self) -> None:
        """End the session in peace: peers that wait for a step learn that there is none."""
        self._close([])

    def _close(self, last_frame: list[bytes | memoryview]) -> None:
        if self._closed:
            return
        self._closed = True
        self._heartbeat.stop()
        for channel in self._channels.values():
            try:
                if last_frame:
                    channel.send_raw(last_frame)
                else:
                    channel.send(FrameHeader(FrameType.END_SESSION), None)
            except CommError as exc:
                log.debug("rank %s was gone before the end: %s", channel.peer, exc)
        settle(self._channels.values(), self._limits.abort_s)
        for channel in self._channels.values():
            channel.close()

    def __enter__(self) -> "SocketMesh":
        return self

    def __exit__(self, kind: object, exc: BaseException | None, traceback: object) -> None:
        if exc is None:
            self.end()
        else:
            self.abort(exc)
