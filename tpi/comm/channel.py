"""One peer's socket: frames in, frames out, nothing ever waits here.

`send` gives the kernel what it takes at once and keeps the rest for `flush`; `receive` reads what
is there, straight into the place that `post` named. The mesh does all waiting. The heartbeat
thread uses `outbox.beat` only; all else belongs to one thread.

A frame is compared with the plan before its payload is read. Where nothing is posted, headers are
read up to the first tensor, so that heartbeats and an ABORT are seen; that header stays `pending`.
"""

import contextlib
import select
import socket
from collections.abc import Sequence

from tpi.comm.closing import find_abort
from tpi.comm.messages import Abort
from tpi.comm.outbox import Outbox
from tpi.comm.transport import Recv
from tpi.comm.wire import HEADER_BYTES, FrameHeader, FrameType
from tpi.errors import FrameError, PeerLostError, TpiError, error_from_code

# Absent outside Linux: there a hang-up shows as a readable socket, which is watched anyway.
POLLRDHUP = getattr(select, "POLLRDHUP", 0)
HANGUP = POLLRDHUP | select.POLLHUP | select.POLLERR
_NOTHING = memoryview(b"")


class PeerAbortError(Exception):
    """Carries a peer's ABORT from the channel to the mesh, which raises what it says."""

    def __init__(self, abort: Abort) -> None:
        super().__init__(abort.message)
        self.abort = abort

    def error(self) -> TpiError:
        """The error that the peer reported, as one of ours."""
        reported = f"rank {self.abort.rank} reported: {self.abort.message}"
        return error_from_code(self.abort.code, reported)


class Channel:
    """Frames to and from one peer over a connected socket, which it owns."""

    def __init__(self, sock: socket.socket, peer: int, epoch: bytes, now_ns: int) -> None:
        sock.setblocking(False)
        with contextlib.suppress(OSError):  # a socket pair in a test has no Nagle to switch off
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.peer = peer
        self.fd = sock.fileno()
        self.socket = sock
        self.outbox = Outbox(sock)  # what is on its way to the peer
        self._epoch = epoch
        self._send_sequence = 0
        self._recv_sequence = 0
        self._head = bytearray(HEADER_BYTES)
        self._head_view = memoryview(self._head)
        self._head_got = 0
        self._expected = b""
        self._body: memoryview | None = None
        self._body_got = 0
        self._control: FrameHeader | None = None
        self.posted: Recv | None = None  # the receive that is under way
        self.index = 0
        self.pending: FrameHeader | None = None  # came before it was asked for; payload unread
        self.ended = False  # the peer has said END_SESSION: its closing is no fault
        self.life_ns = now_ns  # when a byte last came
        self.progress: tuple[int, ...] = ()  # what the peer last said about its place in the plan
        self.progress_ns = now_ns  # when that last changed
        self.peer_waits = False  # its last heartbeat said that it waits for somebody else
        self.frame_ns = 0  # when the first byte of the frame in progress came; 0 if there is none

    def send(self, header: FrameHeader, payload: memoryview | None) -> bool:
        """Begin a frame; True if the kernel took all of it."""
        head = header.encode_as(self._epoch, self._send_sequence)
        self._send_sequence += 1
        return self.send_raw([head] if payload is None else [head, payload])

    def send_raw(self, parts: Sequence[bytes | memoryview]) -> bool:
        """Begin a frame that is encoded already (control frames have no sequence)."""
        try:
            return self.outbox.send(parts)
        except OSError as exc:
            raise self.lost(str(exc)) from exc

    def flush(self) -> bool:
        """Give the kernel more of what waits; True if nothing is left."""
        try:
            return self.outbox.flush()
        except OSError as exc:
            raise self.lost(str(exc)) from exc

    def post(self, recv: Recv, index: int, now_ns: int) -> None:
        """Say what the next tensor is and where it goes.

        A frame that is pending already begins now; call `receive` then, poll may stay quiet.
        """
        if self.posted is not None:
            raise ValueError(f"two receives from rank {self.peer} at once")
        self.posted, self.index = recv, index
        if not recv.expect.max_payload_bytes:
            self._expected = recv.expect.header.encode_as(self._epoch, self._recv_sequence)
        else:
            self._expected = b""
        if self.pending is not None:
            header, self.pending = self.pending, None
            self.frame_ns = now_ns
            self._begin(header)

    def receive(self, now_ns: int) -> bool:
        """Read what is there; True when the posted receive has become complete.

        Raises:
            PeerLostError: the peer has closed or reset the connection.
            FrameError: what came is not the frame that the plan says.
            PeerAbortError: the peer says why it ends the session.
        """
        while True:
            if self._body is not None:
                if not self._read_body(now_ns):
                    return False
                if self._control is None:
                    return self._complete()
                self._end_control()
            if self.pending is not None or not self._read_head(now_ns):
                return False

    def _read_head(self, now_ns: int) -> bool:
        got = self._read(self._head_view[self._head_got :], now_ns)
        if got == 0:
            return False
        if self._head_got == 0:
            self.frame_ns = now_ns
        self._head_got += got
        if self._head_got < HEADER_BYTES:
            return False
        self._head_got = 0
        if self._expected and self._head == self._expected and self.posted is not None:
            self._open_body(self.posted.expect.header)
        else:
            self._other(FrameHeader.decode(self._head), now_ns)
        return True

    def _other(self, header: FrameHeader, now_ns: int) -> None:
        """A frame that is not, byte for byte, the one that was posted."""
        if header.epoch != self._epoch:
            raise FrameError("epoch: a frame of another session")
        if header.kind is FrameType.HEARTBEAT:
            self.frame_ns = 0
            self.peer_waits = bool(header.flags)
            self._note(header, now_ns)
        elif header.kind is FrameType.ABORT:
            self._control = header
            self._body = memoryview(bytearray(header.payload_bytes))
            self._body_got = 0
        elif header.kind in (FrameType.HELLO, FrameType.WELCOME):
            raise FrameError(f"type: {header.kind.name} after the join")
        elif self.posted is None:
            self.pending = header
            self.ended = header.kind is FrameType.END_SESSION
        else:
            self._begin(header)

    def _begin(self, header: FrameHeader) -> None:
        """Check a frame against the plan and make ready for its payload."""
        recv = self.posted
        if recv is None:
            raise ValueError("no receive is posted")
        recv.expect.check(header)
        if header.sequence != self._recv_sequence:
            raise FrameError(f"sequence: expected {self._recv_sequence}, got {header.sequence}")
        if header.kind is FrameType.END_SESSION:
            self.ended = True
        if header.payload_bytes:
            self._open_body(header)
        else:
            recv.got, self._body, self._body_got = header, _NOTHING, 0

    def _open_body(self, header: FrameHeader) -> None:
        recv = self.posted
        if recv is None:
            raise ValueError("no receive is posted")
        body = recv.into if isinstance(recv.into, memoryview) else recv.into(header)
        if len(body) != header.payload_bytes:
            raise ValueError(f"room for {len(body)} bytes, the plan says {header.payload_bytes}")
        recv.got, self._body, self._body_got = header, body, 0

    def _read_body(self, now_ns: int) -> bool:
        body = self._body
        if body is None:
            return True
        if self._body_got < len(body):
            self._body_got += self._read(body[self._body_got :], now_ns)
        return self._body_got == len(body)

    def _complete(self) -> bool:
        recv = self.posted
        if recv is None or recv.got is None:
            raise ValueError("no receive is posted")
        self._note(recv.got, self.life_ns)
        self._recv_sequence += 1
        self._body = self.posted = None
        self._expected = b""
        self.frame_ns = 0
        return True

    def _end_control(self) -> None:
        body = bytes(self._body or b"")
        self._body = self._control = None
        self.frame_ns = 0
        raise PeerAbortError(Abort.decode(body))

    def _note(self, header: FrameHeader, now_ns: int) -> None:
        progress = (header.step, header.layer, header.op, header.start)
        if progress != self.progress:
            self.progress, self.progress_ns = progress, now_ns

    def _read(self, view: memoryview, now_ns: int) -> int:
        try:
            got = self.socket.recv_into(view)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as exc:
            raise self.lost(str(exc)) from exc
        if got == 0:
            raise self.lost()
        self.life_ns = now_ns
        return got

    def progress_text(self) -> str:
        """How far the frame under way has come: "n of m bytes"."""
        if sending := self.outbox.progress_text():
            return sending
        if self._body is not None:
            total = HEADER_BYTES + len(self._body)
            return f"{HEADER_BYTES + self._body_got} of {total} bytes"
        total = HEADER_BYTES
        if self.posted is not None:
            total += self.posted.expect.header.payload_bytes
        return f"{self._head_got} of {total} bytes"

    def lost(self, why: str = "it closed the connection") -> PeerLostError:
        """The error of a connection that is gone."""
        return PeerLostError(f"rank {self.peer} is gone: {why}, after {self.progress_text()}")

    def last_words(self) -> PeerAbortError | None:
        """The ABORT among what is still unread: it says more than the end of the connection."""
        skip = 0
        if self._body is not None and self._control is None:
            skip = len(self._body) - self._body_got
        elif self.pending is not None:
            skip = self.pending.payload_bytes
        abort = find_abort(self.socket, bytes(self._head[: self._head_got]), skip)
        return None if abort is None else PeerAbortError(abort)

    def hang_up(self) -> None:
        """Say that nothing more will be sent; what was sent still arrives."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close the socket; twice is fine."""
        self.socket.close()
