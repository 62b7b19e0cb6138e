"""How connections end: what a peer said last, and time for what we said last to arrive.

Closing a socket with unread bytes resets it, and what is still on its way out is lost. So a rank
that leaves hangs up, drops what comes until the other side's kernel has everything, then closes.
"""

import contextlib
import fcntl
import select
import socket
import sys
import termios
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from tpi.comm.messages import Abort
from tpi.comm.wire import HEADER_BYTES, FrameHeader, FrameType
from tpi.errors import CommError, FrameError

if TYPE_CHECKING:
    from tpi.comm.channel import Channel

_DISCARD_BYTES = 1 << 16
_MAX_READS = 256
_POLL_S = 0.002


def find_abort(sock: socket.socket, head: bytes, skip: int) -> Abort | None:
    """The ABORT among what is still unread on a failed, non-blocking connection, if there is one.

    `head` was read of a header already; `skip` bytes of payload come before the next header.
    """
    rest = bytearray(head)
    scratch = memoryview(bytearray(_DISCARD_BYTES))
    with contextlib.suppress(OSError, FrameError):
        while got := sock.recv_into(scratch):
            drop = min(skip, got)
            rest += scratch[drop:got]
            skip -= drop
            while not skip and len(rest) >= HEADER_BYTES:
                header = FrameHeader.decode(rest[:HEADER_BYTES])
                end = HEADER_BYTES + header.payload_bytes
                if header.kind is not FrameType.ABORT:
                    skip = max(0, end - len(rest))
                elif len(rest) >= end:
                    return Abort.decode(bytes(rest[HEADER_BYTES:end]))
                else:
                    break  # the rest of it comes with the next read
                del rest[:end]
    return None


def settle(connections: "Iterable[Channel]", timeout_s: float) -> None:
    """Give what is still on its way out at most that long to arrive."""
    deadline = time.monotonic() + timeout_s
    left = dict.fromkeys(connections, False)  # whether we have hung up
    while left and time.monotonic() < deadline:
        for connection, hung_up in list(left.items()):
            try:
                flushed = connection.flush()
            except CommError:
                del left[connection]
                continue
            if flushed and not hung_up:
                connection.hang_up()
                left[connection] = True
            if drained(connection.socket) and flushed:
                del left[connection]
        if left:
            select.select([], [], [], _POLL_S)


def drained(sock: socket.socket) -> bool:
    """Drop what came; True once the peer's kernel has all we sent, or the peer is gone."""
    try:
        for _ in range(_MAX_READS):  # a peer that never stops must not hold us
            if not sock.recv(_DISCARD_BYTES):
                return True
    except (BlockingIOError, InterruptedError):
        return _acknowledged(sock)
    except OSError:
        return True
    return False


def _acknowledged(sock: socket.socket) -> bool:
    if not sys.platform.startswith("linux"):
        return False  # no way to ask: wait until the peer closes as well
    with contextlib.suppress(OSError):
        return bytes(fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4))) == bytes(4)
    return True
