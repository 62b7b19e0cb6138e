"""Measures CPU, disk and link from within a device; commands and answers are JSON, one a line.

`probe.py` starts one agent on every device and sends it commands. Each command gets one line in
answer; the end of standard input ends the agent. The agent runs inside the limits that it measures,
so it imports little, holds little memory and, but for the CPU burn, waits without spinning.

A connection between two agents opens with one byte. After `p` every byte comes back. After `s` come
the numbers of bytes (big-endian, 8 bytes each) before and within the measured part, then those
bytes; the answer is the rate of the measured bytes per second (a double; 0 means that they came in
too few pieces to tell).
"""

import json
import mmap
import os
import selectors
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

_PING, _SINK = b"p", b"s"
_SIZES, _RATE = struct.Struct("!QQ"), struct.Struct("!d")
_CHUNK_BYTES = 256 << 10
# These warm up the connection, the path and the caches before the first measured ping.
_WARM_PINGS = 2


class Commands:
    """Lines from standard input; a serving agent can see that one waits without taking it."""

    def __init__(self, fd: int = 0) -> None:
        self.fd = fd
        self._rest = b""

    @property
    def is_waiting(self) -> bool:
        """Whether a whole line was read and not yet taken."""
        return b"\n" in self._rest

    def __iter__(self) -> Iterator[bytes]:
        while True:
            while not self.is_waiting:
                data = os.read(self.fd, 64 << 10)
                if not data:
                    return
                self._rest += data
            line, _, self._rest = self._rest.partition(b"\n")
            yield line


Task = Callable[[Mapping[str, Any], Commands], dict[str, object] | None]


class Slope:
    """The straight line that fits some points best: one late point moves it little."""

    def __init__(self) -> None:
        self.count = 0
        self._x = self._y = self._xx = self._xy = 0.0

    def add(self, at_s: float, amount: float) -> None:
        """Take one point."""
        self.count += 1
        self._x += at_s
        self._y += amount
        self._xx += at_s * at_s
        self._xy += at_s * amount

    @property
    def per_second(self) -> float:
        """How fast the amount grows."""
        spread = self.count * self._xx - self._x * self._x
        return (self.count * self._xy - self._x * self._y) / spread


def answer(event: Mapping[str, object]) -> None:
    """Write one line."""
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def sleep_until(at_ns: int) -> None:
    """Wait without spinning for a time of the monotonic clock."""
    time.sleep(max(0, at_ns - time.monotonic_ns()) / 1e9)


def burn(command: Mapping[str, Any], commands: Commands) -> dict[str, object]:  # noqa: ARG001
    """Compute without pause in some processes at a given time; gives CPU seconds per second."""
    begin_ns = int(command["at_ns"])
    end_ns = begin_ns + int(command["seconds"] * 1e9)
    children = [_burn_in_child(begin_ns, end_ns) for _ in range(int(command["processes"]) - 1)]
    share = _burn(begin_ns, end_ns)
    for pid, pipe in children:
        with open(pipe, "rb") as file:  # noqa: PTH123 - a descriptor; pathlib is slow to import
            share += struct.unpack("d", file.read())[0]
        os.waitpid(pid, 0)
    return {"cpus": share}


def _burn_in_child(begin_ns: int, end_ns: int) -> tuple[int, int]:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writing, struct.pack("d", _burn(begin_ns, end_ns)))
        os._exit(0)
    os.close(writing)
    return pid, reading


def _burn(begin_ns: int, end_ns: int) -> float:
    sleep_until(begin_ns)
    start_ns, cpu_ns = time.monotonic_ns(), time.process_time_ns()
    while time.monotonic_ns() < end_ns:
        pass
    return (time.process_time_ns() - cpu_ns) / (time.monotonic_ns() - start_ns)


def read_disk(command: Mapping[str, Any], commands: Commands) -> dict[str, object]:  # noqa: ARG001
    """Read files again and again, past the page cache; gives bytes per second."""
    warm_ns, measured_ns = int(command["warm_s"] * 1e9), int(command["seconds"] * 1e9)
    start_ns = time.monotonic_ns()
    slope = Slope()
    with mmap.mmap(-1, int(command["request_bytes"])) as buffer:  # page-aligned, as O_DIRECT wants
        total = 0
        for count in _read_again(list(command["paths"]), buffer):
            total += count
            passed_ns = time.monotonic_ns() - start_ns
            if passed_ns >= warm_ns:
                slope.add(passed_ns / 1e9, total)
            if passed_ns >= warm_ns + measured_ns and slope.count > 2:
                break
    return {"read_bps": slope.per_second, "bytes": total}


def _read_again(paths: list[str], buffer: mmap.mmap) -> Iterator[int]:
    """Sizes of reads into the buffer, without end."""
    while True:
        got = 0
        for path in paths:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
            try:
                offset = 0
                while count := os.preadv(fd, [buffer], offset):
                    yield count
                    offset += count
                    got += count
                    if count % mmap.PAGESIZE:  # the end; from here O_DIRECT cannot go on
                        break
            finally:
                os.close(fd)
        if not got:
            raise ValueError(f"nothing to read in {', '.join(paths)}")


def serve(command: Mapping[str, Any], commands: Commands) -> None:
    """Answer connections to a port of its own until the next command comes."""
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
                    _receive(peers, key.fd, buffer, selector)
                else:
                    peer = Peer(server.accept()[0])
                    peers[peer.connection.fileno()] = peer
                    selector.register(peer.connection, selectors.EVENT_READ)
        _close(peers)


def _receive(
    peers: "dict[int, Peer]", fd: int, buffer: bytearray, selector: selectors.BaseSelector
) -> None:
    """Let a peer take what came, and forget a peer that has gone."""
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
            # Time counts from the first such piece, so that the sums keep their last digits.
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
            _recv_exact(connection, 1)
            if number >= 0:
                rtts_ns.append(time.monotonic_ns() - start_ns)
    return {"rtts_s": [rtt / 1e9 for rtt in rtts_ns]}


def send(command: Mapping[str, Any], commands: Commands) -> dict[str, object]:  # noqa: ARG001
    """Send without pause; gives the bits per second at which the measured part arrived."""
    warm, measured = int(command["warm_bytes"]), int(command["bytes"])
    chunk = memoryview(bytes(_CHUNK_BYTES))
    with _connect(command) as connection:
        connection.sendall(_SINK + _SIZES.pack(warm, measured))
        left = warm + measured
        while left:
            left -= connection.send(chunk[: min(left, len(chunk))])
        (rate,) = _RATE.unpack(_recv_exact(connection, _RATE.size))
    if not rate:
        raise ValueError("it came in too few pieces to tell a rate")
    return {"rate_bps": 8 * rate}


def _connect(command: Mapping[str, Any]) -> socket.socket:
    address = (command["address"], int(command["port"]))
    connection = socket.create_connection(address, timeout=command["timeout_s"])
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _recv_exact(connection: socket.socket, num_bytes: int) -> bytes:
    received = b""
    while len(received) < num_bytes:
        data = connection.recv(num_bytes - len(received))
        if not data:
            raise ConnectionError("the other side hung up")
        received += data
    return received


TASKS: Mapping[str, Task] = {
    "burn": burn,
    "disk": read_disk,
    "serve": serve,
    "ping": ping,
    "send": send,
}


def obey(line: bytes, commands: Commands) -> None:
    """Do what a line says, and answer."""
    task = "command"
    try:
        command = json.loads(line)
        task = str(command["do"])
        result = TASKS[task](command, commands)
    except (OSError, ValueError, KeyError, TypeError) as exc:
        answer({"event": "error", "message": f"{task}: {type(exc).__name__}: {exc}"})
        return
    if result is not None:
        answer({"event": task, **result})


def main() -> None:
    """Obey until standard input ends."""
    commands = Commands()
    answer({"event": "up"})
    for line in commands:
        obey(line, commands)


if __name__ == "__main__":
    main()
