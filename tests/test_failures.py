"""What goes wrong between and inside ranks: one named error everywhere, in time, nothing left.

Real `tpi node` processes on loopback. Deadlines are the shipped ones times 0.2, so silence is
noticed after 2 s. What a single channel does is tested in `tests/comm/`.
"""

import os
import signal
import socket
import threading
import time
from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.nodes import Nodes, make_specs, split_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]
TIME_SCALE = 0.2
DEAD_S = 10 * TIME_SCALE
LONG = 20_000  # new tokens: more than any test lets it finish


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    # Rope needs no table, so the positions of a long run cost nothing but KV cache.
    return split_checkpoint(
        tmp_path_factory.mktemp("model"), "mha", world_size=3, max_position_embeddings=LONG + 8
    )


@pytest.fixture
def specs(shards):
    return make_specs(shards, new_tokens=LONG, max_tokens=LONG + 8, time_scale=TIME_SCALE)


def running(specs, tmp_path) -> Nodes:
    """Nodes in the middle of decoding."""
    nodes = Nodes(specs, tmp_path)
    nodes.wait_for("ready", ranks=range(len(specs)))
    nodes.go("r0")
    nodes.wait_for("token", ranks=[0])
    return nodes


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_killed_rank_is_named_by_all_others_at_once(specs, tmp_path, victim):
    with running(specs, tmp_path) as nodes:
        start = time.monotonic()
        nodes.signal(victim, signal.SIGKILL)
        errors = nodes.errors_of(r for r in range(3) if r != victim)
        assert time.monotonic() - start < 3
        for error in errors.values():
            assert error["code"] == "peer_lost"
            assert f"rank {victim}" in error["message"]
        assert set(nodes.exit_codes(r for r in range(3) if r != victim)) == {10}


@pytest.mark.parametrize("victim", [0, 1])
def test_paused_rank_is_named_after_the_liveness_deadline_and_ends_when_it_wakes(
    specs, tmp_path, victim
):
    with running(specs, tmp_path) as nodes:
        start = time.monotonic()
        nodes.signal(victim, signal.SIGSTOP)
        errors = nodes.errors_of(r for r in range(3) if r != victim)
        took = time.monotonic() - start
        assert DEAD_S - 0.2 <= took <= DEAD_S + 3
        assert {e["code"] for e in errors.values()} <= {"peer_silent", "peer_lost"}
        first = [e for e in errors.values() if e["code"] == "peer_silent"]
        assert first
        assert f"rank {victim}" in first[0]["message"]
        nodes.signal(victim, signal.SIGCONT)
        assert nodes.exit_codes([victim])[0] in (10, 11)


def test_rank_killed_between_requests_is_named_by_the_idle_master_and_the_workers(specs, tmp_path):
    with Nodes(specs, tmp_path) as nodes:
        nodes.wait_for("ready", ranks=range(3))
        nodes.signal(1, signal.SIGKILL)
        for error in nodes.errors_of([0, 2]).values():
            assert error["code"] == "peer_lost"
            assert "rank 1" in error["message"]
        assert nodes.exit_codes([0, 2]) == [10, 10]


def test_rank_paused_between_requests_is_named_after_the_liveness_deadline(specs, tmp_path):
    with Nodes(specs, tmp_path) as nodes:
        nodes.wait_for("ready", ranks=range(3))
        start = time.monotonic()
        nodes.signal(2, signal.SIGSTOP)
        error = nodes.errors_of([0])[0]
        assert time.monotonic() - start <= DEAD_S + 3
        assert error["code"] == "peer_silent"
        assert "rank 2" in error["message"]


def test_short_pause_changes_nothing(shards, tmp_path):
    specs = make_specs(shards, new_tokens=64, max_tokens=80, time_scale=TIME_SCALE)
    with Nodes(specs, tmp_path) as nodes:
        nodes.wait_for("ready", ranks=range(3))
        nodes.go("r0")
        nodes.wait_for("token", ranks=[0])
        nodes.signal(1, signal.SIGSTOP)
        threading.Timer(DEAD_S / 2, nodes.signal, (1, signal.SIGCONT)).start()
        nodes.wait_for("end", ranks=range(3))
        paused = nodes.tokens()
    with Nodes(make_specs(shards, new_tokens=64, max_tokens=80), tmp_path) as nodes:
        nodes.wait_for("ready", ranks=range(3))
        nodes.go("r0")
        nodes.wait_for("end", ranks=range(3))
        assert nodes.tokens() == paused


def test_master_ends_workers_on_sigterm(specs, tmp_path):
    with running(specs, tmp_path) as nodes:
        nodes.signal(0, signal.SIGTERM)
        assert nodes.exit_codes([0]) == [130]
        assert all(code in (10, 130) for code in nodes.exit_codes([1, 2]))


def test_closed_standard_input_ends_every_rank(specs, tmp_path):
    with running(specs, tmp_path) as nodes:
        start = time.monotonic()
        nodes.close_stdin([0, 1, 2])
        nodes.exit_codes([0, 1, 2])
        assert time.monotonic() - start < 5


def test_foreign_connections_do_not_disturb_the_join(shards, tmp_path):
    specs = make_specs(shards, new_tokens=4, max_tokens=80)
    host, port = (specs[0].master or "").split(":")
    with Nodes(specs[:1], tmp_path) as nodes:
        sockets = [_connect(host, int(port)) for _ in range(3)]
        sockets[0].sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        sockets[1].sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
        for spec in specs[1:]:
            nodes.start(spec)
        nodes.wait_for("ready", ranks=range(3))
        for sock in sockets:
            sock.close()
        nodes.go("r0")
        nodes.wait_for("end", ranks=range(3))
        assert len(nodes.tokens()) == 4


def _connect(host: str, port: int) -> socket.socket:
    deadline = time.monotonic() + 20
    while True:
        try:
            return socket.create_connection((host, port), timeout=5)
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            threading.Event().wait(0.02)  # the master is still importing


def test_second_rank_1_is_refused_and_the_first_goes_on(shards, tmp_path):
    specs = make_specs(shards, new_tokens=4, max_tokens=80)
    with Nodes([specs[0], specs[1]], tmp_path) as nodes:
        nodes.wait_for_log(0, "rank 1 joined")
        nodes.start(specs[1], name="twin")
        error = nodes.errors_of(["twin"])["twin"]
        assert error["code"] == "auth"
        assert "rank 1" in error["message"]
        nodes.start(specs[2])
        nodes.wait_for("ready", ranks=range(3))
        nodes.go("r0")
        nodes.wait_for("end", ranks=range(3))


def test_rank_with_another_plan_is_refused_by_name(shards, tmp_path, tmp_path_factory):
    other = split_checkpoint(tmp_path_factory.mktemp("other"), "mha", 3, shares=(2, 1, 1))
    specs = make_specs(shards, new_tokens=4, max_tokens=80, time_scale=TIME_SCALE)
    with Nodes([specs[0]], tmp_path) as nodes:
        nodes.start(replace(specs[1], model_dir=other / "rank-1"))
        assert nodes.errors_of([1])[1]["code"] == "incompatible"
        assert nodes.exit_codes([1]) == [16]


def test_missing_worker_is_listed_at_the_join_deadline(shards, tmp_path):
    specs = make_specs(shards, new_tokens=4, max_tokens=80, time_scale=0.05)
    with Nodes(specs[:2], tmp_path) as nodes:
        errors = nodes.errors_of([0, 1])
        assert "2" in errors[0]["message"]
        assert errors[0]["code"] == "peer_lost"


@pytest.mark.parametrize("harm", ["missing", "truncated", "altered"])
def test_bad_shard_is_named_and_ends_all(tmp_path, harm):
    shards = split_checkpoint(tmp_path / "model", "mha", world_size=3)
    block = shards / "rank-1" / "ffn-001.safetensors"
    data = block.read_bytes()
    block.unlink()
    if harm == "truncated":
        block.write_bytes(data[:4096])
    if harm == "altered":
        block.write_bytes(data[:-5000] + bytes([data[-5000] ^ 1]) + data[-4999:])
    specs = make_specs(shards, new_tokens=4, max_tokens=80, time_scale=TIME_SCALE)
    with Nodes(specs, tmp_path) as nodes:
        for error in nodes.errors_of([0, 1, 2]).values():
            assert error["code"] == "weights"
            assert "ffn-001.safetensors" in error["message"]
        assert nodes.exit_codes([0, 1, 2]) == [14, 14, 14]


def test_shard_truncated_while_streaming_is_named_everywhere(tmp_path):
    shards = split_checkpoint(tmp_path / "model", "mha", world_size=3)
    specs = make_specs(shards, new_tokens=LONG, max_tokens=LONG + 8, window=1)
    with running(specs, tmp_path) as nodes:
        os.truncate(shards / "rank-1" / "ffn-001.safetensors", 4096)
        errors = nodes.errors_of([0, 1, 2])
        for error in errors.values():
            assert error["code"] == "weights"
            assert "ffn-001.safetensors" in error["message"]
        assert nodes.exit_codes([0, 1, 2]) == [14, 14, 14]


def test_nothing_listens_beyond_loopback(shards, tmp_path):
    specs = make_specs(shards, new_tokens=4, max_tokens=80)
    with Nodes([replace(specs[0], bind="0.0.0.0")], tmp_path) as nodes:
        error = nodes.errors_of([0])[0]
        assert error["code"] == "config"
        assert "loopback" in error["message"]
        assert nodes.exit_codes([0]) == [2]
