"""What a probe's agent does with its link: serve at the master, ping and send elsewhere.

A connection opens with one byte: `p`, after which every byte comes back, or `s`, then the numbers
of bytes (big-endian, 8 bytes each) before and within what is measured, then those bytes; the answer
is the bytes per second at which the measured ones came (a double; 0: in too few pieces to tell).
"""

import selectors
import socket
import struct
import time
from collections.abc import Mapping
from typing import Any

from testbed.verify.probe_task import Commands, Slope, answer, sleep_until

_PING, _SINK = b"p", b"s"
_SIZES, _RATE = struct.Struct("!QQ"), struct.Struct("!d")
_CHUNK_BYTES = 256 << 10
# Before the first measured ping: the connection, the path and the caches are warm then.
_WARM_PINGS = 2


def serve(command: Mapping[str, Any], commands: Commands) -> None:
    """Echo and swallow what comes to a port of its own until the next command comes."""
    with (
        socket.create_server((command["address"], 0), backlog=256) as server,
        selectors.DefaultSelector() as selector,
    ):
        server.setblocking(False)
        answer({"event": "serve", "port": server.getsockname()[1]})
        selector.register(server, selectors.EVENT_READ)
        selector.register(commands.fd, selectors.EVENT_READ)
        peers: dict[int, Peer] = {}
        buffer = bytearray(_CHUNK_BYTES)
        while not commands.is_waiting:
            for key, _ in selector.select():
                if key.fd == commands.fd:
                    _close(peers)
                    return
                if key.fd in peers:
                    _hear(peers, key.fd, buffer, selector)
                else:
                    peer = Peer(server.accept()[0])
                    peers[peer.connection.fileno()] = peer
                    selector.register(peer.connection, selectors.EVENT_READ)
        _close(peers)


def _hear(
    peers: "dict[int, Peer]", fd: int, buffer: bytearray, selector: selectors.BaseSelector
) -> None:
    """Hand on what came, and forget a peer that has gone."""
    try:
        if peers[fd].take(buffer):
            return
    except OSError:
        pass  # reset, which its own side reports
    peer = peers.pop(fd)
    selector.unregister(peer.connection)
    peer.connection.close()


def _close(peers: "dict[int, Peer]") -> None:
    for peer in peers.values():
        peer.connection.close()


class Peer:
    """The serving side of one connection."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(5)
        self.connection = connection
        self._mode = b""
        self._head = b""
        self._warm = self._end = self._count = 0
        self._first_ns = 0
        self._arrived = Slope()

    def take(self, buffer: bytearray) -> bool:
        """Receive once; False at the end."""
        if not self._mode:
            self._mode = self.connection.recv(1)
            return bool(self._mode)
        if self._mode == _SINK and len(self._head) < _SIZES.size:
            data = self.connection.recv(_SIZES.size - len(self._head))
            self._head += data
            if len(self._head) == _SIZES.size:
                warm, measured = _SIZES.unpack(self._head)
                self._warm, self._end = warm, warm + measured
            return bool(data)
        count = self.connection.recv_into(buffer)
        if self._mode == _PING:
            self.connection.sendall(memoryview(buffer)[:count])
        elif count:
            self._swallow(count)
        return count > 0

    def _swallow(self, count: int) -> None:
        self._count += count
        if self._count >= self._warm:
            # From the first such piece on, lest the numbers lose their last digits.
            self._first_ns = self._first_ns or time.monotonic_ns()
            self._arrived.add((time.monotonic_ns() - self._first_ns) / 1e9, self._count)
        if self._count >= self._end:
            rate = self._arrived.per_second if self._arrived.count > 2 else 0.0
            self.connection.sendall(_RATE.pack(rate))


def ping(command: Mapping[str, Any], commands: Commands) -> dict[str, object]:  # noqa: ARG001
    """Send one byte and await it, at given times or as soon as the one before is back."""
    at_ns, every_ns = int(command["at_ns"]), int(command["every_s"] * 1e9)
    rtts_ns = []
    with _connect(command) as connection:
        connection.sendall(_PING)
        for number in range(-_WARM_PINGS, int(command["count"])):
            if number >= 0:
                sleep_until(at_ns + number * every_ns)
            start_ns = time.monotonic_ns()
            connection.sendall(b"x")
            if not connection.recv(1):
                raise ConnectionError("the other side hung up")
            if number >= 0:
                rtts_ns.append(time.monotonic_ns() - start_ns)
    return {"rtts_s": [rtt / 1e9 for rtt in rtts_ns]}


def send(command: Mapping[str, Any], commands: Commands) -> dict[str, object]:  # noqa: ARG001
    """Send without pause; gives the bits per second that arrived after the first ones."""
    warm, measured = int(command["warm_bytes"]), int(command["bytes"])
    chunk = memoryview(bytes(_CHUNK_BYTES))
    with _connect(command) as connection:
        connection.sendall(_SINK + _SIZES.pack(warm, measured))
        left = warm + measured
        while left:
            left -= connection.send(chunk[: min(left, len(chunk))])
        reply = b""
        while len(reply) < _RATE.size:
            data = connection.recv(_RATE.size - len(reply))
            if not data:
                raise ConnectionError("the other side hung up")
            reply += data
    (rate,) = _RATE.unpack(reply)
    if not rate:
        raise ValueError("it came in too few pieces to tell a rate")
    return {"rate_bps": 8 * rate}


def _connect(command: Mapping[str, Any]) -> socket.socket:
    address = (command["address"], int(command["port"]))
    connection = socket.create_connection(address, timeout=command["timeout_s"])
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection
