"""The Docker daemon of this host: the SDK's client with its errors mapped, and raw streams.

Limits, host process numbers and TAPs are reached beside the daemon, so it must be this host's: only
a Unix socket is accepted. An exec's stream is opened here and not by the SDK, which reads the
answer's header through a buffer and loses what the program had already written.

From the daemon, a stream without a terminal consists of frames:
    0   stream: 0 input, 1 output, 2 error
    1-3 zero
    4-7 length of the payload, big-endian
    8-  payload
To the daemon: plain bytes; shutting our side down closes the program's input.
"""

import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import docker
import docker.errors
import requests

from testbed.base import DeviceError

STDOUT, STDERR = 1, 2
# Less than the 30 s after which a run gives a daemon up.
_TIMEOUT_S = 20
_DEFAULT_HOST = "unix:///var/run/docker.sock"
_MEND = "start it (`systemctl start docker`, or `dockerd` as root); `make doctor` says more"
_HEADER_BYTES = 8
_MOST_HEADER_BYTES = 16 << 10


@contextmanager
def daemon_errors(where: str) -> Iterator[None]:
    """Turn any error of the SDK into a DeviceError of one line."""
    try:
        yield
    except docker.errors.ImageNotFound as exc:
        raise DeviceError(f"{where}: the image is not there; `make image` builds it") from exc
    except docker.errors.APIError as exc:
        raise DeviceError(f"{where}: {exc.explanation or exc}".splitlines()[0]) from exc
    except PermissionError as exc:
        raise DeviceError(
            f"{where}: you may not use the Docker daemon; be root, or join the group docker"
        ) from exc
    except (docker.errors.DockerException, requests.RequestException, OSError) as exc:
        raise DeviceError(f"{where}: the Docker daemon does not answer; {_MEND}") from exc


class Daemon:
    """This host's Docker daemon; may be used from any thread."""

    def __init__(self, host: str | None = None, timeout_s: int = _TIMEOUT_S) -> None:
        """Connect to this host's daemon: `host`, or `DOCKER_HOST`, or Docker's usual socket."""
        host = host or os.environ.get("DOCKER_HOST") or _DEFAULT_HOST
        if not host.startswith("unix://"):
            raise DeviceError(
                f"docker: the daemon at {host} is not this host's, so its limits cannot be read;"
                " unset DOCKER_HOST or let it name a Unix socket (unix:///var/run/docker.sock)"
            )
        self.socket_path = host.removeprefix("unix://")
        self._timeout_s = timeout_s
        with daemon_errors(f"docker: {host}"):
            self._connect().close()
            self._client = docker.APIClient(base_url=host, version="auto", timeout=timeout_s)
        self._prefix = f"/v{self._client.api_version}"

    @property
    def client(self) -> docker.APIClient:
        """The SDK's client; to be used below `daemon_errors`."""
        # The SDK would leave a socket open that it cannot connect; this raises an OSError instead.
        self._connect().close()
        return self._client

    def close(self) -> None:
        """Close idle connections. Twice is fine."""
        self._client.close()

    def cgroup_version(self) -> int:
        """1 or 2."""
        with daemon_errors("docker info"):
            info: Mapping[str, Any] = self.client.info()
        return int(info.get("CgroupVersion") or 1)

    def open_stream(self, path: str, body: Mapping[str, Any]) -> "Stream":
        """Make a request whose answer is a stream in both directions."""
        with daemon_errors(f"docker: {path}"):
            connection = self._connect()
        try:
            with daemon_errors(f"docker: {path}"):
                connection.sendall(_request(self._prefix + path, json.dumps(body).encode()))
                head, rest = _read_head(connection)
            _check_status(path, head, rest)
            connection.settimeout(None)
        except BaseException:
            connection.close()
            raise
        return Stream(connection, rest)

    def _connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.settimeout(self._timeout_s)
            connection.connect(self.socket_path)
        except BaseException:
            connection.close()
            raise
        return connection


class Stream:
    """A connection that the daemon turned into a program's input and output."""

    def __init__(self, connection: socket.socket, first: bytes = b"") -> None:
        self._connection = connection
        self._first = first

    def send(self, data: bytes) -> None:
        """Write all of it to the program's input."""
        self._connection.sendall(data)

    def close_input(self) -> None:
        """The program sees the end of its input; its output goes on."""
        self._connection.shutdown(socket.SHUT_WR)

    def hang_up(self) -> None:
        """End both directions; a reader in another thread sees the end."""
        self._connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection. Twice is fine."""
        self._connection.close()

    def read(self, num_bytes: int) -> bytes:
        """The next bytes from the daemon; none at the end."""
        if self._first:
            first, self._first = self._first, b""
            return first
        return self._connection.recv(num_bytes)


class FrameParser:
    """Turns a stream's bytes, cut anywhere, into (stream, payload) pieces in order. Pure."""

    def __init__(self) -> None:
        self._header = b""
        self._stream = 0
        self._left = 0

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """The pieces in the next bytes; a payload may come in several, a bad header is an error."""
        at = 0
        while at < len(data):
            if self._left:
                payload = data[at : at + self._left]
                self._left -= len(payload)
                at += len(payload)
                yield self._stream, payload
                continue
            piece = data[at : at + _HEADER_BYTES - len(self._header)]
            self._header += piece
            at += len(piece)
            if len(self._header) == _HEADER_BYTES:
                self._open_frame()

    def _open_frame(self) -> None:
        header, self._header = self._header, b""
        if header[0] > STDERR or header[1:4] != b"\0\0\0":
            raise DeviceError(f"docker: expected the header of a stream's frame, got {header!r}")
        self._stream, self._left = header[0], int.from_bytes(header[4:])


def _request(path: str, body: bytes) -> bytes:
    head = (
        f"POST {path} HTTP/1.1\r\nHost: docker\r\nContent-Type: application/json\r\n"
        f"Connection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _read_head(connection: socket.socket) -> tuple[bytes, bytes]:
    """The answer's header, and what came with it."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(4096)
        if not piece or len(data) > _MOST_HEADER_BYTES:
            raise OSError("no HTTP answer")
        data += piece
    head, _, rest = data.partition(b"\r\n\r\n")
    return head, rest


def _check_status(path: str, head: bytes, rest: bytes) -> None:
    status = head.split(b"\r\n", 1)[0].split()
    if status[1:2] not in ([b"101"], [b"200"]):
        text = rest.decode("utf-8", "replace").strip().splitlines()
        raise DeviceError(f"docker: {path}: {head[:40]!r} {text[-1] if text else ''}")
