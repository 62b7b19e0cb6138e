"""Ranks as threads over memory or loopback, and a raw peer that says whatever a test wants."""

import socket
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

from tests.loopback import MemoryMesh
from tpi.comm.deadlines import Deadlines
from tpi.comm.mesh import SocketMesh
from tpi.comm.transport import Recv, Send
from tpi.comm.wire import Expect, FrameHeader, FrameType, Op, WireDtype
from tpi.ranks import Ranks

EPOCH = bytes(range(16))
# Long enough for a busy machine where nothing is meant to expire, short where something is.
QUICK = Deadlines(
    join_s=5, handshake_s=0.3, frame_s=0.4, dead_s=0.3, stall_s=0.5, abort_s=0.1, heartbeat_s=0.05
)
PATIENT = Deadlines(heartbeat_s=0.05)


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of one connection over loopback."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _address = server.accept()
    return near, far


def socket_group(world_size: int, limits: Deadlines = PATIENT, star: bool = False):
    """A connected SocketMesh for every rank."""
    ends: list[dict[int, socket.socket]] = [{} for _ in range(world_size)]
    for low in range(1 if star else world_size):
        for high in range(low + 1, world_size):
            ends[low][high], ends[high][low] = tcp_pair()
    return [SocketMesh(Ranks(r, world_size), ends[r], EPOCH, limits) for r in range(world_size)]


def group(kind: str, world_size: int):
    """Meshes of either kind."""
    return MemoryMesh.group(world_size) if kind == "memory" else socket_group(world_size)


def run_ranks(meshes: Sequence[Any], work: Callable[[Any], Any]) -> list[Any]:
    """Run `work(mesh)` for every rank at once; all leave together. Returns what they returned."""
    done = threading.Barrier(len(meshes))

    def run(mesh):
        with mesh:
            result = work(mesh)
            done.wait(10)  # who leaves early hangs up on those who still read
            return result

    with ThreadPoolExecutor(len(meshes)) as pool:
        return [future.result() for future in [pool.submit(run, mesh) for mesh in meshes]]


def outcomes(meshes: Sequence[Any], work: Callable[[Any], Any]) -> list[Any]:
    """Like `run_ranks`, but an exception becomes that rank's result, and ends its mesh."""

    def run(mesh):
        try:
            with mesh:
                return work(mesh)
        except Exception as exc:  # noqa: BLE001  # the result under test
            return exc

    with ThreadPoolExecutor(len(meshes)) as pool:
        return [future.result() for future in [pool.submit(run, mesh) for mesh in meshes]]


def tensor_header(count=8, *, step=3, layer=5, op=Op.ATTN, **changes) -> FrameHeader:
    fields = {
        "kind": FrameType.TENSOR, "step": step, "layer": layer, "op": op,
        "dtype": WireDtype.FLOAT32, "shape": (count,), "payload_bytes": 4 * count,
    } | changes  # fmt: skip
    return FrameHeader(**fields)


def expect_from(peer: int, count=8, *, idle=False, **changes) -> Recv:
    header = tensor_header(count, **changes)
    return Recv(peer, Expect(header), memoryview(bytearray(4 * count)), idle=idle)


def send_to(peer: int, count=8, **changes) -> Send:
    return Send(peer, tensor_header(count, **changes), memoryview(bytearray(4 * count)))


class RawPeer:
    """The other end of a connection, by hand."""

    def __init__(self, sock: socket.socket, epoch: bytes = EPOCH) -> None:
        self.sock = sock
        self.epoch = epoch
        self.sequence = 0

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def frame(self, header: FrameHeader, payload: bytes = b"", *, epoch=None, sequence=None):
        number = self.sequence if sequence is None else sequence
        self.sequence += 1
        self.send(header.encode_as(epoch or self.epoch, number) + payload)

    def control(self, kind: FrameType, body: bytes = b"", **fields) -> None:
        header = FrameHeader(kind, payload_bytes=len(body), epoch=self.epoch, **fields)
        self.send(header.encode() + body)

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    @contextmanager
    def every(self, period_s: float, action: Callable[[int], None]) -> Iterator[None]:
        """Do `action(n)` again and again from a thread."""
        stop = threading.Event()

        def run() -> None:
            number = 0
            while not stop.wait(period_s):
                try:
                    action(number)
                except OSError:
                    return  # the mesh has closed the connection
                number += 1

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


@contextmanager
def mesh_with_raw_peers(num_peers: int = 1, limits: Deadlines = QUICK):
    """The mesh of rank 0 and the far ends of all its peers."""
    with ExitStack() as stack:
        sockets, peers = {}, {}
        for rank in range(1, num_peers + 1):
            sockets[rank], far = tcp_pair()
            peers[rank] = RawPeer(stack.enter_context(far))
        mesh = SocketMesh(Ranks(0, num_peers + 1), sockets, EPOCH, limits)
        stack.callback(mesh.end)
        yield mesh, *peers.values()
