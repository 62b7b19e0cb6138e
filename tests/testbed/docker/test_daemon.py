"""Streams taken apart however they are cut, and a daemon that refuses, hangs or is not there."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import docker.errors
import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st

from testbed.base import DeviceError
from testbed.docker.daemon import Daemon, FrameParser, daemon_errors

FRAMES = st.lists(st.tuples(st.sampled_from([0, 1, 2]), st.binary(max_size=40)), max_size=12)


def encode(frames):
    return b"".join(
        bytes([stream, 0, 0, 0]) + len(payload).to_bytes(4, "big") + payload
        for stream, payload in frames
    )


def joined(pieces):
    """Neighbouring pieces of one stream as one: how they were cut does not matter."""
    found: list[tuple[int, bytes]] = []
    for stream, payload in pieces:
        if found and found[-1][0] == stream:
            found[-1] = (stream, found[-1][1] + payload)
        elif payload:
            found.append((stream, payload))
    return found


@given(FRAMES, st.lists(st.integers(0, 500)))
def test_frames_come_whole_wherever_the_bytes_are_cut(frames, cuts):
    data = encode(frames)
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    parser = FrameParser()
    pieces = [piece for low, high in pairwise(edges) for piece in parser.feed(data[low:high])]
    assert joined(pieces) == joined(frames)


@pytest.mark.parametrize("header", [b"\x03\0\0\0\0\0\0\1", b"\1\0\1\0\0\0\0\1", b"HTTP/1.1"])
def test_what_is_no_frame_is_refused(header):
    with pytest.raises(DeviceError, match="expected the header of a stream's frame"):
        list(FrameParser().feed(header))


@contextlib.contextmanager
def fake_daemon(path: Path, *answers: bytes) -> Iterator[list[bytes]]:
    """Answers each connection's first request, then keeps it open; gives the requests."""
    seen: list[bytes] = []
    held: list[socket.socket] = []
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen()

    def serve() -> None:
        server.accept()[0].close()  # the first only sees whether somebody is there
        for answer in answers:
            connection, _ = server.accept()
            held.append(connection)
            seen.append(connection.recv(65536))
            connection.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield seen
        thread.join(10)
    finally:
        for connection in held:
            connection.close()
        server.close()


def ok(body: bytes) -> bytes:
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"\r\n" + body


VERSION = ok(b'{"ApiVersion": "1.41", "Version": "20.10"}')


def test_output_that_comes_with_the_answer_is_not_lost(tmp_path):
    answer = b"HTTP/1.1 101 UPGRADED\r\nUpgrade: tcp\r\n\r\n" + encode([(1, b"first\n")])
    with fake_daemon(tmp_path / "d", VERSION, answer) as seen:
        daemon = Daemon(f"unix://{tmp_path}/d")
        stream = daemon.open_stream("/exec/1/start", {"Tty": False})
        assert list(FrameParser().feed(stream.read(100))) == [(1, b"first\n")]
        stream.close()
        stream.close()
        daemon.close()
    assert seen[1].startswith(b"POST /v1.41/exec/1/start HTTP/1.1\r\n")
    assert seen[1].endswith(b'\r\n\r\n{"Tty": false}')


def test_refusal_says_what_the_daemon_says(tmp_path):
    answer = b'HTTP/1.1 409 Conflict\r\nContent-Length: 30\r\n\r\n{"message":"it is not running"}'
    with fake_daemon(tmp_path / "d", VERSION, answer):
        daemon = Daemon(f"unix://{tmp_path}/d")
        with pytest.raises(DeviceError, match=r"409 Conflict.*it is not running"):
            daemon.open_stream("/exec/1/start", {})
        daemon.close()


def test_daemon_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(DeviceError, match="does not answer; start it") as caught:
        Daemon(f"unix://{tmp_path}/none")
    assert "\n" not in str(caught.value)


def test_daemon_that_hangs_is_given_up(tmp_path):
    with (
        fake_daemon(tmp_path / "d", b""),
        pytest.raises(DeviceError, match="does not answer"),
    ):
        Daemon(f"unix://{tmp_path}/d", timeout_s=1)


def test_daemon_named_by_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none")
    with pytest.raises(DeviceError, match=str(tmp_path)):
        Daemon()


def test_daemon_of_another_host_is_refused():
    with pytest.raises(DeviceError, match="not this host's"):
        Daemon("tcp://10.0.0.1:2375")


def test_errors_of_the_sdk_are_one_line_each():
    image = docker.errors.ImageNotFound("no such image")
    api = docker.errors.APIError("500", explanation="first\nsecond")
    for raised, text in [
        (image, "x: the image is not there; `make image`"),
        (api, "x: first"),
        (requests.ConnectionError(), "x: the Docker daemon does not answer"),
        (ConnectionRefusedError(), "x: the Docker daemon does not answer"),
    ]:
        with pytest.raises(DeviceError, match=text) as caught, daemon_errors("x"):
            raise raised
        assert "\n" not in str(caught.value)
        assert caught.value.__cause__ is raised
