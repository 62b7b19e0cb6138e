"""What the tests of links run in a namespace: `python link_programs.py VERB ...`, stdlib only.

Every program answers with JSON lines. CLOCK_MONOTONIC is shared by all namespaces of a host, so a
datagram carries the time at which it was sent and its receiver knows how long it took. When it came
is noted by the kernel, so a busy machine that wakes the receiver late does not matter. A receiver
says `listening` once it can be sent to.
"""

import json
import socket
import struct
import sys
import time
from collections.abc import Callable

_HEADER = struct.Struct("<Qq")  # number, time of sending in ns
_FIRST_S = 10.0
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33  # beyond the limits that hold without root
_SO_TIMESTAMPNS = 35
_TIMESPEC = struct.Struct("@qq")


def say(value: object) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def sink(port: str, count: str, idle_s: str) -> None:
    """Take datagrams until `count` have come or none comes for `idle_s`.

    Says a list of [number, sender, time sent in ns, time received in ns].
    """
    taken: list[tuple[int, str, int, int]] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as inbox:
        inbox.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 64 << 20)
        inbox.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        inbox.bind(("", int(port)))
        inbox.settimeout(_FIRST_S)
        say("listening")
        try:
            while len(taken) < int(count):
                data, notes, _, sender = inbox.recvmsg(65536, 256)
                number, sent_ns = _HEADER.unpack_from(data)
                taken.append((number, sender[0], sent_ns, _came_ns(notes[0][2])))
                inbox.settimeout(float(idle_s))
        except TimeoutError:
            pass
    say(taken)


def _came_ns(timestamp: bytes) -> int:
    """The kernel's note, which is in wall-clock time, on CLOCK_MONOTONIC."""
    seconds, nanoseconds = _TIMESPEC.unpack_from(timestamp)
    return int(seconds * 10**9 + nanoseconds - (time.time_ns() - time.monotonic_ns()))


def blast(address: str, port: str, count: str, ip_bytes: str, gap_s: str) -> None:
    """Send numbered datagrams of `ip_bytes` with headers, `gap_s` apart, once told to by a line."""
    padding = bytes(int(ip_bytes) - 28 - _HEADER.size)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as outbox:
        outbox.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, 64 << 20)
        outbox.connect((address, int(port)))
        say("ready")
        sys.stdin.readline()
        for number in range(int(count)):
            if float(gap_s):
                time.sleep(float(gap_s))
            outbox.send(_HEADER.pack(number, time.monotonic_ns()) + padding)
    say("sent")


def raw(device: str, *frames: str) -> None:
    """Send Ethernet frames that are given in hexadecimal, as they are."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as outbox:
        outbox.bind((device, 0))
        for frame in frames:
            outbox.send(bytes.fromhex(frame))
    say("sent")


if __name__ == "__main__":
    verbs: dict[str, Callable[..., None]] = {"sink": sink, "blast": blast, "raw": raw}
    verbs[sys.argv[1]](*sys.argv[2:])
