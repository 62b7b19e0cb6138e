"""Stands between a client and a Unix socket, so that a test can break what it must not stop.

    python -m tests.faults.relay LISTEN TARGET

Says `ready`, then passes bytes both ways, ends of input too, until it is killed.
"""

import contextlib
import socket
import sys
import threading


def main() -> None:
    """Relay."""
    listen, target = sys.argv[1:]
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(listen)
        server.listen()
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while True:
            client, _ = server.accept()
            daemon = socket.socket(socket.AF_UNIX)
            daemon.connect(target)
            for pair in ((client, daemon), (daemon, client)):
                threading.Thread(target=_pass, args=pair, daemon=True).start()


def _pass(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


if __name__ == "__main__":
    main()
