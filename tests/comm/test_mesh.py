"""Transfers between sockets, and everything a peer can do to them."""

import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from tests.comm.peers import (
    EPOCH,
    PATIENT,
    QUICK,
    expect_from,
    group,
    mesh_with_raw_peers,
    outcomes,
    run_ranks,
    send_to,
    socket_group,
    tensor_header,
)
from tpi.comm.messages import Abort
from tpi.comm.transport import Recv, Send
from tpi.comm.wire import Expect, Flag, FrameType, Op, WireDtype
from tpi.errors import (
    CommError,
    FrameError,
    PeerLostError,
    PeerStalledError,
    PeerTimeoutError,
    WeightsError,
)

BIG = 4 << 20  # elements: 16 MiB, more than the kernel holds for both directions


def payload_of(recv: Recv) -> bytes:
    assert isinstance(recv.into, memoryview)
    return bytes(recv.into)


def data_of(rank: int, count: int) -> bytearray:
    return bytearray([rank + 1]) * (4 * count)


# --- what works ----------------------------------------------------------------------------


@pytest.mark.parametrize("world_size", [2, 3])
def test_large_payloads_in_all_directions_at_once(world_size):
    def work(mesh):
        mine = memoryview(data_of(mesh.ranks.rank, BIG))
        into = {p: bytearray(4 * BIG) for p in mesh.ranks.peers}
        header = tensor_header(BIG)
        mesh.transfer(
            [Send(p, header, mine) for p in mesh.ranks.peers],
            [Recv(p, Expect(header), memoryview(into[p])) for p in mesh.ranks.peers],
        )
        return into

    limits = replace(PATIENT, heartbeat_s=0.001)  # heartbeats try to get in between
    for rank, into in enumerate(run_ranks(socket_group(world_size, limits), work)):
        assert into == {p: data_of(p, BIG) for p in range(world_size) if p != rank}


def test_receives_complete_in_any_order_and_are_called_back():
    with mesh_with_raw_peers(3) as (mesh, *peers):
        for peer in (peers[2], peers[0], peers[1]):
            peer.frame(tensor_header(8), bytes(data_of(peers.index(peer), 8)))
        recvs = [expect_from(rank) for rank in (1, 2, 3)]
        seen: list[int] = []
        mesh.transfer([], recvs, seen.append)
        assert sorted(seen) == [0, 1, 2]
        assert [payload_of(r) for r in recvs] == [bytes(data_of(i, 8)) for i in range(3)]


def test_frame_that_came_early_waits_for_its_turn():
    with mesh_with_raw_peers(2) as (mesh, first, second):
        for step in (0, 1):
            first.frame(tensor_header(8, step=step), bytes(32))
        second.frame(tensor_header(8, step=0), bytes(32))
        recvs = [expect_from(2, step=0), expect_from(1, step=0), expect_from(1, step=1)]
        for recv in recvs:
            mesh.transfer([], [recv])
        assert [recv.got and recv.got.step for recv in recvs] == [0, 0, 1]


def test_heartbeats_may_come_between_any_frames_and_in_pieces():
    with mesh_with_raw_peers() as (mesh, peer):
        beat = tensor_header(0, kind=FrameType.HEARTBEAT, shape=(), dtype=WireDtype.NONE,
                             payload_bytes=0).encode_as(EPOCH, 0)  # fmt: skip
        peer.send(beat + beat[:40])
        mesh.check()
        peer.send(beat[40:])
        peer.frame(tensor_header(8), bytes(32))
        recv = expect_from(1)
        mesh.transfer([], [recv])
        assert recv.got is not None


def test_counters_count_tensor_frames_only():
    def work(mesh):
        if mesh.ranks.rank == 0:
            mesh.transfer([send_to(1, 100)], [])
            mesh.transfer([Send(1, replace(tensor_header(), kind=FrameType.END_REQUEST, shape=(),
                                           payload_bytes=0))], [])  # fmt: skip
        else:
            mesh.transfer([], [expect_from(0, 100)])
            end = Expect(tensor_header(shape=(0, 0, 0)), max_payload_bytes=400)
            mesh.transfer([], [Recv(0, end, memoryview(b""))])
        return mesh.counters

    sender, receiver = run_ranks(socket_group(2), work)
    assert (sender.messages_sent, sender.bytes_sent) == (1, 480)
    assert (receiver.messages_sent, receiver.bytes_sent) == (0, 0)


def test_slow_peer_that_lives_and_progresses_is_no_error():
    with mesh_with_raw_peers() as (mesh, peer):

        def beat(number):
            if number == 25:
                peer.frame(tensor_header(8), bytes(32))
            peer.control(FrameType.HEARTBEAT, step=number)

        with peer.every(0.03, beat):  # 0.75 s: beyond dead_s 0.3 and stall_s 0.5
            mesh.transfer([], [expect_from(1)])


def test_progress_of_ranks_before_a_peer_is_as_good_as_its_own():
    with mesh_with_raw_peers(2) as (mesh, middle, last):
        middle_beats = lambda n: middle.control(FrameType.HEARTBEAT, step=n)  # noqa: E731

        def beat(number):
            if number == 25:
                last.frame(tensor_header(8), bytes(32))
            last.control(FrameType.HEARTBEAT, step=3)

        recv = expect_from(2)
        recv.through = (1,)
        with middle.every(0.03, middle_beats), last.every(0.03, beat):
            mesh.transfer([], [recv])  # 0.75 s: beyond stall_s 0.5


def test_idle_wait_outlasts_the_stall_deadline():
    with mesh_with_raw_peers() as (mesh, peer):

        def beat(number):
            if number == 25:
                peer.frame(tensor_header(8), bytes(32))
            peer.control(FrameType.HEARTBEAT)

        with peer.every(0.03, beat):
            mesh.transfer([], [expect_from(1, idle=True)])


# --- peers that leave ----------------------------------------------------------------------


def raises_soon(error, text, work, limit_s=1.0):
    start = time.monotonic()
    with pytest.raises(error, match=text):
        work()
    assert time.monotonic() - start < limit_s


def test_end_of_connection_mid_frame_says_how_far_it_came():
    with mesh_with_raw_peers() as (mesh, peer):
        peer.frame(tensor_header(1000), bytes(500))
        peer.sock.close()
        raises_soon(
            PeerLostError,
            "rank 1 is gone.*after 580 of 4080 bytes.*rank 0 was at the attn sum of step 3",
            lambda: mesh.transfer([], [expect_from(1, 1000)]),
        )


def test_end_of_connection_between_frames():
    with mesh_with_raw_peers() as (mesh, peer):
        peer.sock.close()
        raises_soon(PeerLostError, "rank 1", lambda: mesh.transfer([], [expect_from(1)]))


def test_reset_mid_frame():
    with mesh_with_raw_peers() as (mesh, peer):
        peer.frame(tensor_header(1000), bytes(500))
        peer.reset()
        raises_soon(PeerLostError, "rank 1", lambda: mesh.transfer([], [expect_from(1, 1000)]))


def test_reset_while_sending():
    with mesh_with_raw_peers() as (mesh, peer):
        peer.reset()
        raises_soon(PeerLostError, "rank 1", lambda: mesh.transfer([send_to(1, BIG)], []))


def test_lost_peer_wakes_a_transfer_that_waits_for_another():
    with mesh_with_raw_peers(2) as (mesh, _silent, leaving):
        thread = threading.Thread(target=leaving.sock.close)
        thread.start()
        raises_soon(PeerLostError, "rank 2", lambda: mesh.transfer([], [expect_from(1)]))
        thread.join()


def test_lost_peer_is_seen_behind_a_frame_that_nobody_reads_yet():
    with mesh_with_raw_peers(2) as (mesh, _silent, leaving):
        leaving.frame(tensor_header(8), bytes(32))
        leaving.sock.close()
        raises_soon(PeerLostError, "rank 2", lambda: mesh.transfer([], [expect_from(1)]))


def test_check_sees_a_lost_peer():
    with mesh_with_raw_peers() as (mesh, peer):
        mesh.check()
        peer.sock.close()
        raises_soon(PeerLostError, "rank 1", mesh.check)


def test_frame_that_is_complete_is_delivered_even_if_its_sender_has_left():
    with mesh_with_raw_peers() as (mesh, peer):
        peer.frame(tensor_header(8), bytes(32))
        peer.sock.close()
        mesh.transfer([], [expect_from(1)])


# --- peers that report ---------------------------------------------------------------------

REASON = Abort(3, "weights", "rank-3/ffn-001.safetensors: truncated").encode()


@pytest.mark.parametrize(
    ("before", "ends"),
    [("nothing", False), ("nothing", True), ("a frame", True), ("a frame and a longer one", True)],
)
def test_reported_error_wins_over_the_end_of_the_connection(before, ends):
    with mesh_with_raw_peers(2) as (mesh, _silent, peer):
        if before != "nothing":
            peer.frame(tensor_header(3000), bytes(12000))
        if before == "a frame and a longer one":
            peer.frame(tensor_header(9000, step=4), bytes(36000))
        peer.control(FrameType.ABORT, REASON)
        if ends:
            peer.sock.shutdown(socket.SHUT_WR)
        raises_soon(
            WeightsError,
            "^rank 3 reported: rank-3/ffn-001.safetensors: truncated$",
            lambda: mesh.transfer([], [expect_from(1)]),
        )


def test_reported_error_wins_when_sending_fails():
    with mesh_with_raw_peers() as (mesh, peer):
        peer.control(FrameType.ABORT, REASON)
        mesh._channels[1].post(expect_from(1), 0, time.monotonic_ns())  # nobody reads yet
        peer.sock.close()
        raises_soon(WeightsError, "rank 3", lambda: mesh.transfer([send_to(1, BIG)], []))


def test_check_raises_what_a_peer_reports():
    with mesh_with_raw_peers() as (mesh, peer):
        peer.control(FrameType.ABORT, REASON)
        raises_soon(WeightsError, "rank 3", mesh.check)


def test_unknown_code_is_still_an_error():
    with mesh_with_raw_peers() as (mesh, peer):
        peer.control(FrameType.ABORT, Abort(1, "no such code", "text").encode())
        with pytest.raises(Exception, match="rank 1 reported: text"):
            mesh.check()


@pytest.mark.parametrize("star", [True, False])
def test_error_of_one_rank_reaches_all_under_its_name(star):
    def work(mesh):
        if mesh.ranks.rank == 2:
            raise WeightsError("ffn-001.safetensors is missing")
        mesh.transfer([], [expect_from(1 if mesh.ranks.rank == 0 else 0)])

    errors = outcomes(socket_group(4, star=star), work)
    for rank, error in enumerate(errors):
        assert type(error) is WeightsError
        prefix = "" if rank == 2 else "rank 2 reported: "
        assert str(error) == f"{prefix}ffn-001.safetensors is missing"


def test_other_exceptions_reach_peers_as_a_lost_rank():
    def work(mesh):
        if mesh.ranks.rank == 1:
            raise KeyError("bug")
        mesh.transfer([], [expect_from(1)])

    lost, own = outcomes(socket_group(2), work)
    assert type(own) is KeyError
    assert type(lost) is PeerLostError
    assert "rank 1 is gone: KeyError" in str(lost)


def test_abort_gets_through_behind_a_frame_that_is_half_sent():
    limits = replace(PATIENT, abort_s=5)
    meshes = socket_group(2, limits)
    stuck = threading.Event()

    def work(mesh):
        if mesh.ranks.rank == 1:
            stuck.wait(5)
            mesh.transfer([], [expect_from(0, BIG)])
            mesh.transfer([], [expect_from(0, step=4)])
        channel = mesh._channels[1]
        assert not channel.send(tensor_header(BIG), memoryview(bytes(4 * BIG)))
        stuck.set()
        raise WeightsError("in the middle of a frame")

    errors = outcomes(meshes, work)
    assert [type(e) for e in errors] == [WeightsError, WeightsError]


def test_abort_takes_no_longer_than_its_deadline_when_peers_do_not_read():
    with mesh_with_raw_peers(2, replace(QUICK, abort_s=0.5)) as (mesh, *_peers):
        for channel in mesh._channels.values():
            assert not channel.send(tensor_header(4 * BIG), memoryview(bytes(16 * BIG)))
        start = time.monotonic()
        mesh.abort(WeightsError("gone"))
        assert 0.5 <= time.monotonic() - start < 1.5


def test_first_abort_wins_and_closing_twice_is_fine():
    with mesh_with_raw_peers() as (mesh, peer):
        mesh.abort(WeightsError("first"))
        mesh.abort(WeightsError("second"))
        mesh.end()
        mesh.check()
        assert b"first" in peer.sock.recv(1000)
        assert peer.sock.recv(1000) == b""
        with pytest.raises(CommError, match="closed"):
            mesh.transfer([send_to(1)], [])


# --- peers that are silent, stuck, slow ----------------------------------------------------


def raises_between(error, text, low_s, high_s, work):
    start = time.monotonic()
    with pytest.raises(error, match=text):
        work()
    assert low_s <= time.monotonic() - start <= high_s


def test_silent_peer():
    with mesh_with_raw_peers() as (mesh, _peer):
        raises_between(
            PeerTimeoutError, "rank 1 is silent", QUICK.dead_s, QUICK.dead_s + 1,
            lambda: mesh.transfer([], [expect_from(1)]),
        )  # fmt: skip


def test_peer_that_falls_silent_mid_frame():
    with mesh_with_raw_peers() as (mesh, peer):
        peer.frame(tensor_header(1000), bytes(500))
        raises_between(
            PeerTimeoutError, "580 of 4080 bytes", QUICK.dead_s, QUICK.dead_s + 1,
            lambda: mesh.transfer([], [expect_from(1, 1000)]),
        )  # fmt: skip


def test_silent_master_ends_an_idle_wait():
    with mesh_with_raw_peers() as (mesh, _peer), pytest.raises(PeerTimeoutError, match="rank 1"):
        mesh.transfer([], [expect_from(1, idle=True)])


def test_silent_peer_is_seen_by_check():
    limits = replace(QUICK, dead_s=0.2)
    with mesh_with_raw_peers(limits=limits) as (mesh, _peer):

        def ask_often():
            pause = threading.Event()
            for _ in range(100):
                mesh.check()
                pause.wait(0.02)

        raises_between(PeerTimeoutError, "rank 1 is silent", 0.2, 1.2, ask_often)


def test_silence_while_nobody_listened_is_no_error():
    with mesh_with_raw_peers(limits=replace(QUICK, dead_s=0.1)) as (mesh, peer):
        mesh._channels[1].life_ns = mesh._watched_ns = mesh._watched_from_ns = 0
        mesh.check()
        peer.frame(tensor_header(8), bytes(32))
        mesh.transfer([], [expect_from(1)])


def test_living_peer_without_progress():
    with mesh_with_raw_peers() as (mesh, peer):
        beats = peer.every(0.03, lambda _n: peer.control(FrameType.HEARTBEAT, step=3, layer=5))
        with beats:
            raises_between(
                PeerStalledError, "rank 1 lives but made no progress.*step 3, layer 5",
                QUICK.stall_s, QUICK.stall_s + 1,
                lambda: mesh.transfer([], [expect_from(1)]),
            )  # fmt: skip


def test_peer_that_waits_itself_is_blamed_later():
    with mesh_with_raw_peers(limits=replace(QUICK, stall_s=0.2)) as (mesh, peer):
        beat = lambda _n: peer.control(FrameType.HEARTBEAT, flags=Flag.WAITING)  # noqa: E731
        with peer.every(0.03, beat):
            raises_between(
                PeerStalledError, "no progress", 0.4, 1.4,
                lambda: mesh.transfer([], [expect_from(1)]),
            )  # fmt: skip


def test_chain_without_progress_is_named():
    with mesh_with_raw_peers(2, replace(QUICK, stall_s=0.2)) as (mesh, middle, last):
        recv = expect_from(2)
        recv.through = (1,)
        still = [
            peer.every(0.03, lambda _n, peer=peer: peer.control(FrameType.HEARTBEAT, step=3))
            for peer in (middle, last)
        ]
        with still[0], still[1]:
            raises_between(
                PeerStalledError, "rank 2 lives but made no progress.*before it come ranks 1",
                0.2, 1.2, lambda: mesh.transfer([], [recv]),
            )  # fmt: skip


@pytest.mark.parametrize("kind", ["memory", "socket"])
def test_a_transfer_can_be_given_up_from_another_thread(kind):
    mesh, other = group(kind, 2)
    with ThreadPoolExecutor(1) as pool:
        waits = pool.submit(mesh.transfer, [], [expect_from(1)])
        mesh.give_up()
        error = waits.exception(timeout=5)
    assert isinstance(error, CommError)
    mesh.abort(ValueError("of rank 0"))  # what comes next; the other rank hears of it
    with pytest.raises(PeerLostError, match=r"of rank 0"):
        other.transfer([], [expect_from(0)])
    other.end()


def test_drip_of_single_bytes_meets_the_frame_deadline():
    with mesh_with_raw_peers() as (mesh, peer):
        frame = tensor_header(8).encode_as(EPOCH, 0) + bytes(32)
        with peer.every(0.02, lambda n: peer.send(frame[n : n + 1])):
            raises_between(
                PeerStalledError, "within 0.4 s of its first byte", QUICK.frame_s,
                QUICK.frame_s + 1, lambda: mesh.transfer([], [expect_from(1)]),
            )  # fmt: skip


def test_peer_that_lives_but_stops_reading():
    with mesh_with_raw_peers(2) as (mesh, peer, _other):
        beats = peer.every(0.03, lambda n: peer.control(FrameType.HEARTBEAT, step=n))
        with beats:
            raises_between(
                PeerStalledError, "rank 1 lives but does not read: .* of 67108944 bytes sent",
                QUICK.stall_s, QUICK.stall_s + 1,
                lambda: mesh.transfer([send_to(1, 4 * BIG)], []),
            )  # fmt: skip


def test_silent_peer_that_stops_reading():
    with mesh_with_raw_peers() as (mesh, _peer), pytest.raises(PeerTimeoutError, match="rank 1"):
        mesh.transfer([send_to(1, 4 * BIG)], [])


# --- peers that are wrong ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"step": 4}, "step: expected 3, got 4"), ({"layer": 6}, "layer: expected 5, got 6"),
        ({"op": Op.FFN}, "op: expected ATTN, got FFN"),
        ({"dtype": WireDtype.BFLOAT16, "payload_bytes": 16}, "dtype"), ({"shape": (2, 4)}, "shape"),
        ({"start": 8}, "start"), ({"request": 1}, "request"), ({"flags": 1}, "flags"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("early", [True, False])
def test_frame_that_does_not_fit_the_plan(changes, field, early):
    with mesh_with_raw_peers() as (mesh, peer):
        peer.frame(tensor_header(8, **changes), bytes(32))
        if early:
            mesh.check()
        raises_soon(FrameError, f"rank 1: {field}", lambda: mesh.transfer([], [expect_from(1)]))


def test_payload_is_not_read_when_the_header_is_wrong():
    with mesh_with_raw_peers() as (mesh, peer):
        peer.frame(tensor_header(8, step=9), b"x" * 32)
        recv = expect_from(1)
        with pytest.raises(FrameError):
            mesh.transfer([], [recv])
        assert payload_of(recv) == bytes(32)


@pytest.mark.parametrize(
    ("say", "text"),
    [
        (lambda p: p.frame(tensor_header(8), bytes(32), sequence=1), "sequence: expected 0, got 1"),
        (lambda p: p.frame(tensor_header(8), bytes(32), epoch=b"x" * 16), "epoch"),
        (lambda p: p.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n" * 4), "magic"),
        (lambda p: p.control(FrameType.HELLO, bytes(46)), "HELLO after the join"),
        (lambda p: p.control(FrameType.END_REQUEST), "kind"),
        (lambda p: p.control(FrameType.ABORT, b"?"), "abort"),
        (lambda p: p.send(os.urandom(4096)), "magic"),
    ],
)  # fmt: skip
def test_bytes_that_are_no_frame_of_this_session(say, text):
    with mesh_with_raw_peers() as (mesh, peer):
        say(peer)
        raises_soon(FrameError, text, lambda: mesh.transfer([], [expect_from(1)]))


def test_second_frame_of_the_same_sum():
    with mesh_with_raw_peers() as (mesh, peer):
        for _ in range(2):
            peer.frame(tensor_header(8), bytes(32))
        mesh.transfer([], [expect_from(1)])
        raises_soon(FrameError, "layer", lambda: mesh.transfer([], [expect_from(1, layer=6)]))


# --- nothing is left -----------------------------------------------------------------------


def test_start_and_stop_leave_no_thread_and_no_descriptor():
    def descriptors():
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208

    run_ranks(socket_group(3), lambda mesh: mesh.check())
    before = threading.active_count(), descriptors()
    for number in range(30):
        if number % 2:
            outcomes(socket_group(3), lambda mesh: mesh.transfer([], [expect_from(3)]))
        else:
            run_ranks(socket_group(3), lambda mesh: mesh.check())
    assert (threading.active_count(), descriptors()) == before


def test_end_lets_peers_leave_in_peace():
    def work(mesh):
        if mesh.ranks.rank == 0:
            return None
        end = Expect(tensor_header(shape=(0, 0, 0)), max_payload_bytes=400)
        recv = Recv(0, end, memoryview(b""), idle=True)
        mesh.transfer([], [recv])
        return recv.got and recv.got.kind

    assert outcomes(socket_group(4), work)[1:] == [FrameType.END_SESSION] * 3
