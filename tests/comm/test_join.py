"""Who is let in, who is not, and how everybody learns why."""

import contextlib
import logging
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import pytest

from tests.comm.peers import PATIENT, QUICK, expect_from, send_to
from tpi.comm.join import join, open_listener, parse_address
from tpi.comm.messages import Abort, FrameParser, Hello
from tpi.comm.wire import FrameHeader, FrameType
from tpi.errors import (
    AuthError,
    ConfigError,
    IncompatibleError,
    PeerLostError,
    PeerTimeoutError,
)
from tpi.ranks import Ranks

SESSION, PLAN = b"s" * 16, b"p" * 32
LIMITS = replace(PATIENT, handshake_s=0.3)


class Site:
    """A master's address and the ranks that join there, each in a thread."""

    def __init__(self, world_size: int, pool: ThreadPoolExecutor) -> None:
        self.world_size = world_size
        self.listener = open_listener("127.0.0.1", 0, trust_network=False)
        self.address = self.listener.getsockname()
        self._pool = pool

    def join(self, rank: int, limits=LIMITS, **changes):
        options = {
            "bind": "127.0.0.1", "master": f"127.0.0.1:{self.address[1]}", "session": SESSION,
            "fingerprint": PLAN, "deadlines": limits, "peer_links": False, "trust_network": False,
            "listener": self.listener if rank == 0 else None,
        } | changes  # fmt: skip
        world_size = options.pop("world_size", self.world_size)
        return self._pool.submit(join, Ranks(rank, world_size), **options)

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address)

    def say(self, data: bytes) -> bytes:
        """Connect, say that, return the whole answer."""
        with self.connect() as sock:
            sock.settimeout(5)
            with contextlib.suppress(ConnectionError):
                sock.sendall(data)
                answer = b""
                while more := sock.recv(4096):
                    answer += more
                return answer
        return b""

    def hello(self, rank: int, world_size=None, session=SESSION, fingerprint=PLAN) -> Abort:
        body = Hello(rank, world_size or self.world_size, fingerprint).encode()
        header = FrameHeader(FrameType.HELLO, payload_bytes=len(body), epoch=session)
        [(header, body)] = FrameParser().feed(self.say(header.encode() + body))
        assert header.kind is FrameType.ABORT
        assert header.epoch == bytes(16)  # no stranger learns the session from a refusal
        return Abort.decode(body)


@contextmanager
def site(world_size: int):
    with ThreadPoolExecutor(world_size + 2) as pool:
        place = Site(world_size, pool)
        try:
            yield place
        finally:
            place.listener.close()


def finish(futures) -> None:
    meshes = [future.result() for future in futures]
    with ThreadPoolExecutor(len(meshes)) as pool:
        list(pool.map(lambda mesh: mesh.end(), meshes))


def wait_for_log(caplog, text: str) -> None:
    deadline = time.monotonic() + 5
    while text not in caplog.text and time.monotonic() < deadline:
        threading.Event().wait(0.005)


def exchange_all(mesh) -> None:
    """Everybody who is linked sends to everybody."""
    peers = list(mesh._channels)
    mesh.transfer([send_to(p) for p in peers], [expect_from(p) for p in peers])


@pytest.mark.parametrize("peer_links", [False, True])
@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_ranks_join_in_any_order_and_talk(world_size, peer_links):
    with site(world_size) as place:
        order = [*range(1, world_size), 0]  # workers first: they wait for the master
        futures = [place.join(rank, peer_links=peer_links) for rank in order]
        meshes = [future.result() for future in futures]
        with ThreadPoolExecutor(world_size) as pool:
            list(pool.map(exchange_all, meshes))
        links = {mesh.ranks.rank: len(mesh._channels) for mesh in meshes}
        assert links[0] == world_size - 1
        assert set(links.values()) <= {world_size - 1, 1}
        if peer_links:
            assert set(links.values()) == {world_size - 1}
        finish(futures)


def test_worker_retries_until_the_master_listens():
    with site(2) as place:
        place.listener.close()  # frees the port: nobody listens there
        worker = place.join(1)
        again = open_listener("127.0.0.1", place.address[1], trust_network=False)
        master = place.join(0, listener=again)
        finish([master, worker])


@pytest.mark.parametrize(
    "junk",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"\x80\x04\x95pickle", bytes(100),
    ],
    ids=["http", "ssh", "tls", "pickle", "zeros"],
)  # fmt: skip
def test_foreign_bytes_are_refused_at_once_with_one_line(junk, caplog):
    caplog.set_level(logging.WARNING)
    with site(2) as place:
        master = place.join(0, replace(LIMITS, handshake_s=5))
        start = time.monotonic()
        place.say(junk)
        assert time.monotonic() - start < 1
        finish([master, place.join(1)])
    lines = [r for r in caplog.records if r.name == "tpi.comm.acceptor"]
    assert len(lines) == 1
    assert "magic" in lines[0].getMessage()


def test_silent_connection_hinders_nobody():
    with site(2) as place:
        master = place.join(0, replace(LIMITS, handshake_s=5))
        with place.connect() as silent:
            start = time.monotonic()
            finish([master, place.join(1)])
            assert time.monotonic() - start < 1
            silent.settimeout(5)
            assert silent.recv(100) == b""


def test_silent_connection_is_told_why_when_its_time_is_up():
    with site(2) as place:
        master = place.join(0)
        start = time.monotonic()
        answer = place.say(b"TPI1")
        assert 0.3 <= time.monotonic() - start < 1.3
        assert b"no HELLO within 0.3 s" in answer
        finish([master, place.join(1)])


def test_twenty_strangers_do_not_keep_workers_out():
    with site(3) as place:
        master = place.join(0, replace(LIMITS, handshake_s=5))
        strangers = [place.connect() for _ in range(20)]
        start = time.monotonic()
        finish([master, place.join(1), place.join(2)])
        assert time.monotonic() - start < 1
        for stranger in strangers:
            stranger.close()


@pytest.mark.parametrize(
    ("hello", "code", "text"),
    [
        ({"rank": 99}, "incompatible", "rank 99 is not expected"),
        ({"rank": -1}, "incompatible", "rank -1 is not expected"),
        ({"rank": 0}, "incompatible", "rank 0 is not expected"),
        ({"rank": 1, "world_size": 4}, "incompatible", "one of 4 ranks, rank 0 one of 2"),
        ({"rank": 1, "fingerprint": b"q" * 32}, "incompatible", "another plan"),
        ({"rank": 1, "session": b"t" * 16}, "auth", "another session"),
    ],
)  # fmt: skip
def test_wrong_hello_is_refused_by_name_and_the_join_goes_on(hello, code, text):
    with site(2) as place:
        master = place.join(0)
        refusal = place.hello(**hello)
        assert refusal.code == code
        assert text in refusal.message
        finish([master, place.join(1)])


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"session": b"t" * 16}, AuthError), ({"fingerprint": b"q" * 32}, IncompatibleError),
        ({"world_size": 5}, IncompatibleError),
    ],
)  # fmt: skip
def test_worker_that_does_not_belong_learns_why(changes, error):
    with site(2) as place:
        master = place.join(0)
        with pytest.raises(error, match="rank 0 reported"):
            place.join(1, **changes).result()
        finish([master, place.join(1)])


def test_second_rank_1_is_refused_and_the_first_stays(caplog):
    caplog.set_level(logging.INFO)
    with site(3) as place:
        master, first = place.join(0), place.join(1)
        wait_for_log(caplog, "rank 1 joined")
        with pytest.raises(AuthError, match="rank 1 has joined already"):
            place.join(1).result()
        finish([master, first, place.join(2)])


def test_missing_ranks_are_named_at_the_deadline_to_everybody():
    with site(4) as place:
        limits = replace(LIMITS, join_s=0.4)
        start = time.monotonic()
        master, worker = place.join(0, limits), place.join(2, LIMITS)
        for future in (master, worker):
            with pytest.raises(PeerLostError, match=r"rank 1, 3 of 4 did not join within 0.4 s"):
                future.result()
        assert 0.4 <= time.monotonic() - start < 1.4


def test_refused_worker_is_named_when_its_rank_is_missing():
    with site(2) as place:
        master = place.join(0, replace(LIMITS, join_s=0.4))
        place.hello(1, fingerprint=b"q" * 32)
        with pytest.raises(PeerLostError, match=r"rank 1 of 2 did not join.*another plan"):
            master.result()


def test_worker_that_leaves_during_the_join_is_named_at_once(caplog):
    caplog.set_level(logging.INFO)
    with site(4) as place:
        master = place.join(0)
        other = place.join(2)
        wait_for_log(caplog, "rank 2 joined")
        body = Hello(1, 4, PLAN).encode()
        header = FrameHeader(FrameType.HELLO, payload_bytes=len(body), epoch=SESSION)
        with place.connect() as sock:
            sock.sendall(header.encode() + body)
        start = time.monotonic()
        for future in (master, other):
            with pytest.raises(PeerLostError, match="rank 1 is gone"):
                future.result()
        assert time.monotonic() - start < 1


def test_master_that_never_starts():
    with site(2) as place:
        place.listener.close()
        start = time.monotonic()
        with pytest.raises(PeerLostError, match=r"rank 0 does not answer at 127\.0\.0\.1"):
            place.join(1, replace(QUICK, join_s=0.3)).result()
        assert time.monotonic() - start < 1.3


def test_master_that_is_silent_during_the_join():
    with site(2) as place:  # it listens, nobody accepts
        start = time.monotonic()
        with pytest.raises(PeerTimeoutError, match=r"rank 0.*silent during the join"):
            place.join(1, QUICK).result()
        assert QUICK.dead_s <= time.monotonic() - start < QUICK.dead_s + 1


def test_master_that_dies_during_the_join():
    with site(2) as place:
        worker = place.join(1)
        place.listener.accept()[0].close()
        with pytest.raises(PeerLostError, match="rank 0 is gone"):
            worker.result()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_nothing_listens_or_calls_beyond_loopback_unless_trusted(host):
    with pytest.raises(ConfigError, match="loopback"):
        open_listener(host, 0, trust_network=False)
    with site(2) as place, pytest.raises(ConfigError, match="loopback"):
        place.join(1, master=f"[{host}]:4711").result()


def test_trusted_network_may_be_listened_on():
    open_listener("0.0.0.0", 0, trust_network=True).close()


def test_port_in_use_is_a_config_error():
    with open_listener("127.0.0.1", 0, trust_network=False) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}"):
            open_listener("127.0.0.1", port, trust_network=False)


@pytest.mark.parametrize("text", ["", "host", "host:", ":4711", "host:0", "host:70000", "host:-1",
                                  "host:1x"])  # fmt: skip
def test_bad_address_is_a_config_error(text):
    with pytest.raises(ConfigError, match="host:port"):
        parse_address(text)


def test_addresses():
    assert parse_address("127.0.0.1:4711") == ("127.0.0.1", 4711)
    assert parse_address("[::1]:4711") == ("::1", 4711)


def test_unknown_host_is_a_config_error():
    with pytest.raises(ConfigError, match=r"no-such-host\.invalid"):
        open_listener("no-such-host.invalid", 0, trust_network=False)


def test_port_can_be_used_again_at_once():
    for _ in range(3):
        with site(2) as place:
            port = place.address[1]
            finish([place.join(0), place.join(1)])
        open_listener("127.0.0.1", port, trust_network=False).close()
