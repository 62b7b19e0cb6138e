"""Datagrams between two namespaces and back: whether they arrive, and how long they take."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator

from testbed.links.nettools import HeldNamespace, entered

_PORT = 5077
_PAYLOAD_BYTES = 100
ECHO_IP_BYTES = _PAYLOAD_BYTES + 8 + 20
_SERVER = f"""
import select, socket, sys
server = socket.socket(type=socket.SOCK_DGRAM)
server.bind((sys.argv[1], {_PORT}))
print("up", flush=True)
while True:
    readable, _, _ = select.select([server, sys.stdin], [], [])
    if sys.stdin in readable:
        break
    data, sender = server.recvfrom(2048)
    server.sendto(data, sender)
"""
_CLIENT = f"""
import json, socket, sys, time
client = socket.socket(type=socket.SOCK_DGRAM)
client.connect((sys.argv[1], {_PORT}))
client.settimeout(float(sys.argv[3]))
trips = []
for i in range(int(sys.argv[2])):
    start = time.monotonic()
    client.send(i.to_bytes({_PAYLOAD_BYTES}, "big"))
    try:
        while int.from_bytes(client.recv(2048), "big") != i:
            pass
        trips.append(time.monotonic() - start)
    except TimeoutError:
        pass
print(json.dumps(trips))
"""


@contextlib.contextmanager
def echo_server(room: HeldNamespace, address: str) -> Iterator[None]:
    """Answer every datagram in a namespace while the body runs."""
    argv = entered(f"/proc/{room.pid}/ns/net", [sys.executable, "-I", "-c", _SERVER, address])
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        assert server.stdin is not None
        try:
            assert server.stdout.readline() == b"up\n"
            yield
        finally:
            server.stdin.close()  # its lease


def round_trips_s(
    room: HeldNamespace, address: str, num_trips: int, timeout_s: float = 5.0
) -> list[float]:
    """Seconds of each datagram that came back in time."""
    argv = [sys.executable, "-I", "-c", _CLIENT, address, str(num_trips), str(timeout_s)]
    trips = json.loads(room.run(argv))
    assert isinstance(trips, list)
    return trips
