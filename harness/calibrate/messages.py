"""The costs of a message at both ends: frames of our wire between two processes over loopback.

The sender's call is timed alone, and a message there and back; half of that, less the call, is the
time to wake up and read. Sizes from 64 bytes to 1 MiB give the fixed part and the part of each
packet. This module is also the program that sends everything back.
"""

import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from statistics import median

from harness.calibrate.fits import Points, fit_line, medians
from harness.calibrate.sizes import Sizes
from testbed.links.link import MSS_BYTES
from tpi.comm.deadlines import Deadlines
from tpi.comm.mesh import SocketMesh
from tpi.comm.transport import Recv, Send
from tpi.comm.wire import EPOCH_BYTES, Expect, FrameHeader, FrameType, Op, WireDtype
from tpi.ranks import Ranks

_EPOCH = bytes(range(EPOCH_BYTES))
_WARM_UP = 5


def measure_messages(sizes: Sizes) -> dict[str, float]:
    """Send messages of all sizes to another process and back; returns as `costs_from`."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        counts = (listener.getsockname()[1], sizes.rounds, _WARM_UP + sizes.exchanges)
        argv = [sys.executable, "-m", __name__, *map(str, (*counts, *sizes.messages))]
        child = stack.enter_context(subprocess.Popen(argv, start_new_session=True))
        stack.callback(child.kill)
        listener.settimeout(60)
        mesh = stack.enter_context(_mesh(0, listener.accept()[0]))
        found = [_round(mesh, sizes) for _ in range(sizes.rounds)]
    return costs_from(medians([a for a, _ in found]), medians([b for _, b in found]))


def costs_from(calls: Points, one_ways: Points) -> dict[str, float]:
    """Fields of `Calibration`: seconds per message for its sender and its receiver, per packet.

    Both points are (payload bytes, seconds): the sender's call, and the way to the other end.

    Packets cost both ends alike: they go through the same layers of the kernel.
    """
    # Large payloads wait in the call until the receiver takes them; small ones do not.
    send_s = min(seconds for _, seconds in calls)
    line = fit_line(one_ways)
    recv_s, packet_s = max(line.fixed - send_s, 0.0), line.slope * MSS_BYTES / 2
    return {"send_s": send_s, "recv_s": recv_s, "packet_s": packet_s}


def _round(mesh: SocketMesh, sizes: Sizes) -> tuple[Points, Points]:
    calls: list[tuple[float, float]] = []
    one_ways: list[tuple[float, float]] = []
    for num_bytes in sizes.messages:
        send, recv = _frame(1, num_bytes)
        count = _WARM_UP + sizes.exchanges
        timed = [_exchange(mesh, send, recv) for _ in range(count)][_WARM_UP:]
        calls.append((num_bytes, median(call for call, _ in timed)))
        one_ways.append((num_bytes, median(both for _, both in timed) / 2))
    return calls, one_ways


def _exchange(mesh: SocketMesh, send: Send, recv: Recv) -> tuple[float, float]:
    """Seconds of the sender's call, and of a message there and back."""
    start_ns = time.monotonic_ns()
    mesh.transfer([send], [])
    sent_ns = time.monotonic_ns()
    mesh.transfer([], [recv])
    return (sent_ns - start_ns) / 1e9, (time.monotonic_ns() - start_ns) / 1e9


def _frame(peer: int, num_bytes: int) -> tuple[Send, Recv]:
    header = FrameHeader(
        FrameType.TENSOR, op=Op.FFN, dtype=WireDtype.FLOAT32, shape=(num_bytes // 4,),
        payload_bytes=num_bytes,
    )  # fmt: skip
    place = memoryview(bytearray(num_bytes))
    return Send(peer, header, place), Recv(peer, Expect(header), place)


def _mesh(rank: int, sock: socket.socket) -> SocketMesh:
    return SocketMesh(Ranks(rank, 2), {1 - rank: sock}, _EPOCH, Deadlines())


def _send_back(port: str, rounds: str, exchanges: str, messages: Sequence[str]) -> None:
    with _mesh(1, socket.create_connection(("127.0.0.1", int(port)))) as mesh:
        for num_bytes in [int(text) for text in messages] * int(rounds):
            send, recv = _frame(0, num_bytes)
            for _ in range(int(exchanges)):
                mesh.transfer([], [recv])
                mesh.transfer([send], [])


if __name__ == "__main__":
    _send_back(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:])
