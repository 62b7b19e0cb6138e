"""What the benchmark of links runs in a namespace: `link_endpoints.py VERB ...`, pure stdlib.

`serve` answers on TCP; the others measure from their side, warm up first, and say a list of seconds
(`bulk`: bits per second) as one JSON line. `serve` says `listening` once it can be connected to.
"""

import json
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable

_HELLO = struct.Struct("<4sI")  # what to do, payload bytes
_TIMESPEC = struct.Struct("@qq")
# Linux numbers that Python has no names for; tcpi_bytes_acked lies at 120 in struct tcp_info.
_SO_SNDBUFFORCE, _SO_TIMESTAMPNS = 32, 35
_BYTES_ACKED, _BYTES_ACKED_AT = struct.Struct("=Q"), 120
_TIMEOUT_S = 30.0
_WARM_UP = 20


def say(value: object) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def recv_exact(peer: socket.socket, buffer: bytearray) -> bool:
    view = memoryview(buffer)
    while view:
        got = peer.recv_into(view, len(view), socket.MSG_WAITALL)
        if not got:
            return False
        view = view[got:]
    return True


def answer(peer: socket.socket) -> None:
    """`echo` gives a payload back, `send` sends one for each byte, `take` only takes."""
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    hello = bytearray(_HELLO.size)
    with peer:
        if not recv_exact(peer, hello):
            return
        verb, num_bytes = _HELLO.unpack(hello)
        payload = bytearray(num_bytes)
        asked = bytearray(1) if verb == b"send" else payload
        while recv_exact(peer, asked):
            if verb != b"take":
                peer.sendall(payload)


def serve(port: str) -> None:
    """Until standard input ends."""
    listener = socket.create_server(("", int(port)), backlog=64)
    say("listening")

    def accept() -> None:
        while True:
            peer, _ = listener.accept()
            threading.Thread(target=answer, args=(peer,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    sys.stdin.read()


def connect(address: str, port: str, verb: bytes, num_bytes: int) -> socket.socket:
    peer = socket.create_connection((address, int(port)), _TIMEOUT_S)
    peer.settimeout(None)
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    peer.sendall(_HELLO.pack(verb, num_bytes))
    return peer


def timed(once: Callable[[], None], count: int) -> None:
    """Say how long each of `count` took."""
    took_s = []
    for _ in range(_WARM_UP + count):
        start_s = time.monotonic()
        once()
        took_s.append(time.monotonic() - start_s)
    say(took_s[_WARM_UP:])


def ping(address: str, count: str) -> None:
    """ICMP echoes of 84 IP bytes, which the other side's kernel answers.

    As with the `ping` of every system, the kernel notes when the answer came: this process may be
    woken late, which would say something of the machine and nothing of the link.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
        raw.settimeout(_TIMEOUT_S)
        raw.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        raw.connect((address, 0))
        number = os.getpid() & 0xFFFF
        checksum = (0x0800 + number) % 0xFFFF ^ 0xFFFF
        echo = struct.pack(">BBHHH", 8, 0, checksum, number, 0) + bytes(56)
        took_s = []
        for _ in range(_WARM_UP + int(count)):
            start_ns = time.time_ns()
            raw.send(echo)
            data, notes, _, _ = raw.recvmsg(2048, 256)
            while data[20] != 0:
                data, notes, _, _ = raw.recvmsg(2048, 256)
            seconds, nanoseconds = _TIMESPEC.unpack_from(notes[0][2])
            took_s.append((seconds * 10**9 + nanoseconds - start_ns) / 1e9)
        say(took_s[_WARM_UP:])


def ping_pong(address: str, port: str, num_bytes: str, count: str) -> None:
    """A payload there and back."""
    with connect(address, port, b"echo", int(num_bytes)) as peer:
        payload = bytearray(int(num_bytes))

        def once() -> None:
            peer.sendall(payload)
            recv_exact(peer, payload)

        timed(once, int(count))


def gather(port: str, num_bytes: str, count: str, *addresses: str) -> None:
    """One byte to each of many, and a payload from each."""
    peers = [connect(address, port, b"send", int(num_bytes)) for address in addresses]
    payload = bytearray(int(num_bytes))

    def once() -> None:
        for peer in peers:
            peer.sendall(b"g")
        for peer in peers:
            recv_exact(peer, payload)

    timed(once, int(count))
    for peer in peers:
        peer.close()


def bulk(address: str, port: str, window_bytes: str, seconds: str) -> None:
    """Payload bits per second that the other side takes, with a window that no queue overflows."""

    def send_for(duration_s: float) -> tuple[float, int]:
        until_s = time.monotonic() + duration_s
        while time.monotonic() < until_s:
            peer.sendall(block)
        info = peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        return time.monotonic(), _BYTES_ACKED.unpack_from(info, _BYTES_ACKED_AT)[0]

    block = bytes(1 << 16)
    with connect(address, port, b"take", len(block)) as peer:
        peer.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, int(window_bytes))
        start_s, before = send_for(float(seconds) / 2)
        end_s, after = send_for(float(seconds))
        say([(after - before) * 8 / (end_s - start_s)])


VERBS: dict[str, Callable[..., None]] = {
    "serve": serve,
    "ping": ping,
    "ping-pong": ping_pong,
    "gather": gather,
    "bulk": bulk,
}

if __name__ == "__main__":
    VERBS[sys.argv[1]](*sys.argv[2:])
