"""The agent itself: its tasks as functions, and the program as a device starts it."""

import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from testbed.verify.probe_agent import Commands, Peer, Slope, obey

ROOT = Path(__file__).parents[3]


class Agent:
    """The program, spoken to over pipes."""

    def __init__(self) -> None:
        self._popen = subprocess.Popen(
            [sys.executable, "-S", "-m", "testbed.verify.probe_agent"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={"PYTHONPATH": str(ROOT)},
        )
        assert self.read() == {"event": "up"}

    def ask(self, **command: Any) -> Any:
        self.send(**command)
        return self.read()

    def send(self, **command: Any) -> None:
        assert self._popen.stdin is not None
        self._popen.stdin.write(json.dumps(command).encode() + b"\n")
        self._popen.stdin.flush()

    def read(self) -> Any:
        assert self._popen.stdout is not None
        return json.loads(self._popen.stdout.readline())

    def end(self) -> int:
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        self._popen.stdin.close()
        code = self._popen.wait(10)
        self._popen.stdout.close()
        return code


@pytest.fixture
def agent() -> Iterator[Agent]:
    agent = Agent()
    yield agent
    agent.end()


@pytest.fixture
def master() -> Iterator[Agent]:
    master = Agent()
    yield master
    master.end()


@pytest.fixture
def commands() -> Iterator[Commands]:
    reading, writing = os.pipe()
    yield Commands(reading)
    os.close(reading)
    os.close(writing)


def serve(master: Agent) -> dict[str, Any]:
    served = master.ask(do="serve", address="127.0.0.1")
    assert served["event"] == "serve"
    return {"address": "127.0.0.1", "port": served["port"], "timeout_s": 10}


def at_once() -> int:
    return time.monotonic_ns()


def test_it_ends_with_its_input(agent):
    assert agent.end() == 0


def test_it_ends_with_its_input_while_it_serves():
    agent = Agent()
    serve(agent)
    assert agent.end() == 0


@pytest.mark.parametrize("processes", [1, 2])
def test_burn_counts_cpu_time_of_all_its_processes(agent, processes):
    found = agent.ask(do="burn", at_ns=at_once(), seconds=0.2, processes=processes)
    assert found["event"] == "burn"
    assert 0.02 < found["cpus"] < processes * 1.01


def test_burn_waits_for_its_time(agent):
    begin_ns = time.monotonic_ns()
    agent.ask(do="burn", at_ns=begin_ns + 200_000_000, seconds=0.01, processes=1)
    assert time.monotonic_ns() - begin_ns >= 200_000_000


def test_files_are_read_one_after_the_other_and_again(agent, tmp_path):
    sizes = {"a": 3 << 20, "b": (1 << 20) + 5, "empty": 0}  # the second is no whole page
    for name, size in sizes.items():
        (tmp_path / name).write_bytes(bytes(size))
    paths = [str(tmp_path / name) for name in sizes]
    asked = {"request_bytes": 1 << 20, "warm_s": 0.01, "seconds": 0.1}
    found = agent.ask(do="disk", paths=paths, **asked)
    assert found["event"] == "disk", found
    assert found["bytes"] > sum(sizes.values())
    assert found["read_bps"] > 1e6


def test_pings_come_back_at_their_times(agent, master):
    where = serve(master)
    begin_ns = time.monotonic_ns()
    found = agent.ask(do="ping", **where, at_ns=begin_ns, every_s=0.02, count=6)
    assert time.monotonic_ns() - begin_ns >= 5 * 20_000_000
    assert len(found["rtts_s"]) == 6
    assert all(0 < rtt_s < 5 for rtt_s in found["rtts_s"])


def test_several_peers_are_served_at_once_and_then_other_commands(agent, master):
    where = serve(master)
    agent.send(do="ping", **where, at_ns=at_once(), every_s=0.05, count=4)
    other = Agent()
    found = other.ask(do="send", **where, warm_bytes=1 << 20, bytes=4 << 20)
    assert found["rate_bps"] > 1e7
    assert len(agent.read()["rtts_s"]) == 4
    other.end()
    assert master.ask(do="burn", at_ns=at_once(), seconds=0.01, processes=1)["event"] == "burn"
    assert agent.ask(do="ping", **where, at_ns=0, every_s=0, count=1)["event"] == "error"


def test_a_peer_that_resets_its_connection_disturbs_nobody(agent, master):
    where = serve(master)
    rude = socket.create_connection((where["address"], where["port"]))
    rude.sendall(b"pxxx")
    rude.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    rude.close()
    assert len(agent.ask(do="ping", **where, at_ns=0, every_s=0, count=3)["rtts_s"]) == 3


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (b"nonsense", "command: JSONDecodeError"),
        (b"[]", "command: TypeError"),
        (b'{"do": "dance"}', "dance: KeyError"),
        (b'{"do": "burn"}', "burn: KeyError"),
        (b'{"do": "disk", "paths": ["/nowhere"], "request_bytes": 4096, "warm_s": 0,'
         b' "seconds": 1}', "disk: FileNotFoundError"),
        (b'{"do": "ping", "address": "127.0.0.1", "port": 1, "timeout_s": 1, "at_ns": 0,'
         b' "every_s": 0, "count": 1}', "ping: ConnectionRefusedError"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_answered_by_an_error(command, words, commands, capsys):
    obey(command, commands)
    found = json.loads(capsys.readouterr().out)
    assert found["event"] == "error"
    assert found["message"].startswith(words)


def test_empty_files_are_nothing_to_read(commands, capsys, tmp_path):
    (tmp_path / "empty").touch()
    asked = {"do": "disk", "paths": [str(tmp_path / "empty")], "request_bytes": 4096}
    obey(json.dumps({**asked, "warm_s": 0, "seconds": 1}).encode(), commands)
    assert "nothing to read" in json.loads(capsys.readouterr().out)["message"]


def test_a_serving_side_that_hangs_up_is_an_error(commands, capsys):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        thread = threading.Thread(target=lambda: server.accept()[0].close())
        thread.start()
        where = {"address": "127.0.0.1", "port": port, "timeout_s": 5}
        task = {"do": "ping", "at_ns": 0, "every_s": 0, "count": 1}
        obey(json.dumps({**task, **where}).encode(), commands)
        thread.join()
    assert json.loads(capsys.readouterr().out)["event"] == "error"


def test_commands_are_cut_anywhere():
    reading, writing = os.pipe()
    commands = Commands(reading)
    os.write(writing, b"one\ntwo\nth")
    lines = iter(commands)
    assert (next(lines), commands.is_waiting) == (b"one", True)
    assert (next(lines), commands.is_waiting) == (b"two", False)
    os.write(writing, b"ree\n")
    assert next(lines) == b"three"
    os.write(writing, b"no end")
    os.close(writing)
    assert list(lines) == []
    os.close(reading)


def test_slope_is_little_moved_by_a_point_that_came_late():
    slope = Slope()
    for step in range(50):
        slope.add(0.01 * step + (0.03 if step == 0 else 0), 1000 * step)
    assert slope.per_second == pytest.approx(100_000, rel=0.02)


@pytest.mark.parametrize(
    ("pieces", "is_rate"), [([10, 20, 20, 20, 20, 20], True), ([110], False), ([60, 50], False)]
)
def test_a_sink_tells_a_rate_from_enough_pieces(pieces, is_rate):
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as far,
        server.accept()[0] as near,
    ):
        peer, buffer = Peer(near), bytearray(1 << 16)
        for byte in b"s" + struct.pack("!QQ", 50, 60):
            far.sendall(bytes([byte]))
            assert peer.take(buffer)
        for size in pieces:
            far.sendall(bytes(size))
            assert peer.take(buffer)
        (rate,) = struct.unpack("!d", far.recv(8))
        assert (rate > 0) is is_rate
        far.shutdown(socket.SHUT_WR)
        assert not peer.take(buffer)


def test_a_rate_that_cannot_be_told_is_an_error(agent, master):
    found = agent.ask(do="send", **serve(master), warm_bytes=0, bytes=5)
    assert found["event"] == "error"
    assert "too few pieces" in found["message"]
