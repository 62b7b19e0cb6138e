"""One peer's socket: frames in, frames out, nothing ever waits here.

`send` gives the kernel what it takes at once and keeps the rest for `flush`; `receive` reads what
is there, straight into the place that `post` named. Who waits, for what and how long is the
mesh's affair. The heartbeat thread uses `beat` only; everything else belongs to one thread.

A frame is compared with the plan before its payload is read. Where nothing is posted, headers are
read up to the first tensor, so that heartbeats and an ABORT are seen; that header stays `pending`.
"""

import contextlib
import fcntl
import select
import socket
import sys
import termios
import threading
from collections.abc import Sequence

from tpi.comm.messages import Abort
from tpi.comm.transport import Recv
from tpi.comm.wire import HEADER_BYTES, MAX_CONTROL_BYTES, FrameHeader, FrameType
from tpi.errors import CommError, FrameError, PeerLostError, TpiError, error_from_code

# Absent outside Linux: there a hang-up shows as a readable socket, which is watched anyway.
POLLRDHUP = getattr(select, "POLLRDHUP", 0)
HANGUP = POLLRDHUP | select.POLLHUP | select.POLLERR
_FLAGS = getattr(socket, "MSG_NOSIGNAL", 0)
_DISCARD_BYTES = 1 << 16
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
    """Frames to and from one peer over a connected socket, which it owns.

    Attributes:
        pending: A frame that came before anybody asked for it; its payload is still unread.
        posted: The receive that is under way.
        ended: The peer has said END_SESSION: its closing is no fault.
        life_ns: When a byte last came.
        progress, progress_ns: What the peer last said about its place in the plan, and when that
            last changed.
        peer_waits: Whether the peer's last heartbeat said that it waits for somebody else.
        frame_ns: When the first byte of the frame in progress came; 0 if there is none.
    """

    def __init__(self, sock: socket.socket, peer: int, epoch: bytes, now_ns: int) -> None:
        sock.setblocking(False)
        with contextlib.suppress(OSError):  # a socket pair in a test has no Nagle to switch off
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.peer = peer
        self.fd = sock.fileno()
        self._sock = sock
        self._epoch = epoch
        self._lock = threading.Lock()  # guards `_out`: no heartbeat may split a frame
        self._out: list[memoryview] = []
        self._out_bytes = 0
        self._send_sequence = 0
        self._recv_sequence = 0
        self._head = bytearray(HEADER_BYTES)
        self._head_view = memoryview(self._head)
        self._head_got = 0
        self._expected = b""
        self._body: memoryview | None = None
        self._body_got = 0
        self._control: FrameHeader | None = None
        self.posted: Recv | None = None
        self.index = 0
        self.pending: FrameHeader | None = None
        self.ended = False
        self.life_ns = now_ns
        self.progress: tuple[int, ...] = ()
        self.progress_ns = now_ns
        self.peer_waits = False
        self.frame_ns = 0

    # --- out -------------------------------------------------------------------------------

    def send(self, header: FrameHeader, payload: memoryview | None) -> bool:
        """Begin a frame; True if the kernel took all of it."""
        head = header.encode_as(self._epoch, self._send_sequence)
        self._send_sequence += 1
        return self.send_raw([head] if payload is None else [head, payload])

    def send_raw(self, parts: Sequence[bytes | memoryview]) -> bool:
        """Begin a frame that is encoded already (control frames have no sequence)."""
        with self._lock:
            self._out_bytes = sum(map(len, parts))
            if self._out:
                self._out += [memoryview(part) for part in parts]
                return self._flush()
            return self._put(parts)

    def flush(self) -> bool:
        """Give the kernel more of what waits; True if nothing is left."""
        with self._lock:
            return self._flush()

    def beat(self, heartbeat: bytes) -> None:
        """Send a heartbeat, unless a frame is on its way: that shows life as well.

        Called by the heartbeat thread, which never waits and leaves errors to the other one.
        """
        if not self._lock.acquire(blocking=False):
            return
        try:
            if self._out:
                self._flush()
            else:
                self._put([heartbeat])
        except CommError:
            pass  # the thread that waits for this peer learns the same from its own calls
        finally:
            self._lock.release()

    @property
    def unsent_bytes(self) -> int:
        """Bytes that the kernel has not taken yet."""
        return sum(map(len, self._out))

    def _flush(self) -> bool:
        if not self._out:
            return True
        parts, self._out = self._out, []
        return self._put(parts)

    def _put(self, parts: Sequence[bytes | memoryview]) -> bool:
        try:
            taken = self._sock.sendmsg(parts, (), _FLAGS)
        except (BlockingIOError, InterruptedError):
            taken = 0
        except OSError as exc:
            raise self._lost(str(exc)) from exc
        for number, part in enumerate(parts):
            if taken < len(part):
                rest = [memoryview(left) for left in parts[number:]]
                self._out = [rest[0][taken:], *rest[1:]]
                return False
            taken -= len(part)
        return True

    # --- in --------------------------------------------------------------------------------

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
            got = self._sock.recv_into(view)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as exc:
            raise self._lost(str(exc)) from exc
        if got == 0:
            raise self._lost("it closed the connection")
        self.life_ns = now_ns
        return got

    # --- the end ---------------------------------------------------------------------------

    def progress_text(self) -> str:
        """How far the frame under way has come: "n of m bytes"."""
        if self._out:
            return f"{self._out_bytes - self.unsent_bytes} of {self._out_bytes} bytes"
        if self._body is not None:
            total = HEADER_BYTES + len(self._body)
            return f"{HEADER_BYTES + self._body_got} of {total} bytes"
        total = HEADER_BYTES
        if self.posted is not None:
            total += self.posted.expect.header.payload_bytes
        return f"{self._head_got} of {total} bytes"

    def lost(self) -> PeerLostError:
        """The error of a connection that poll says is gone."""
        return self._lost("it closed the connection")

    def _lost(self, why: str) -> PeerLostError:
        return PeerLostError(f"rank {self.peer} is gone: {why}, after {self.progress_text()}")

    def last_words(self) -> PeerAbortError | None:
        """The ABORT behind whatever is still unread on a connection that has failed, if any.

        A reason that a peer gave says more than the end of its connection.
        """
        skip = self._unread_payload()
        rest = bytearray() if skip else bytearray(self._head[: self._head_got])
        scratch = memoryview(bytearray(_DISCARD_BYTES))
        with contextlib.suppress(OSError, FrameError):
            while got := self._sock.recv_into(scratch):
                data = scratch[:got]
                drop = min(skip, got)
                skip -= drop
                rest += data[drop:]
                abort, skip = _find_abort(rest, skip)
                if abort is not None:
                    return PeerAbortError(abort)
        return None

    def _unread_payload(self) -> int:
        if self._body is not None:
            return len(self._body) - self._body_got if self._control is None else 0
        return self.pending.payload_bytes if self.pending is not None else 0

    def hang_up(self) -> None:
        """Say that nothing more will be sent; what was sent still arrives."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    def settled(self) -> bool:
        """Read and drop what comes; True once the peer's kernel has all we sent, or is gone.

        Closing a socket with unread bytes would reset it and lose what is still on its way out.
        """
        try:
            while self._sock.recv(_DISCARD_BYTES):
                pass
        except (BlockingIOError, InterruptedError):
            return self._acknowledged()
        except OSError:
            pass
        return True

    def _acknowledged(self) -> bool:
        if not sys.platform.startswith("linux"):
            return False
        with contextlib.suppress(OSError):
            unacked = fcntl.ioctl(self.fd, termios.TIOCOUTQ, b"\0" * 4)
            return unacked == bytes(4)
        return True

    def close(self) -> None:
        """Close the socket; twice is fine."""
        self._sock.close()


def _find_abort(rest: bytearray, skip: int) -> tuple[Abort | None, int]:
    """Take whole frames off `rest`: the ABORT if one is complete, else how much to skip next."""
    while not skip and len(rest) >= HEADER_BYTES:
        header = FrameHeader.decode(rest[:HEADER_BYTES])
        end = HEADER_BYTES + header.payload_bytes
        if header.kind is FrameType.ABORT:
            if len(rest) < end or end > HEADER_BYTES + MAX_CONTROL_BYTES:
                return None, 0
            return Abort.decode(bytes(rest[HEADER_BYTES:end])), 0
        skip = max(0, end - len(rest))
        del rest[:end]
    return None, skip
