"""The switch's queues, delays and losses with a clock of the test's own."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.switch import model
from testbed.switch.model import ETHERNET_BYTES, Lateness, Port, PortSpec, Random, Switch

MS = 1_000_000
# 1500 bytes take 40 us, 3000 bytes wait at most.
PLAIN = PortSpec("a", 2 * MS, 300_000_000, 3000, 0)
FREE = PortSpec("a", 0, 0, 3000, 0)


def frame(dst: int, ip_bytes: int = 1500, number: int = 0) -> bytes:
    head = bytes((2, 0, 0, 0)) + (dst + 1).to_bytes(2, "big")
    return head.ljust(ETHERNET_BYTES, b"\0") + number.to_bytes(4, "big").ljust(ip_bytes, b"\0")


class Taken(list[bytes]):
    """A device that takes what it is given."""

    def __call__(self, data: bytes) -> bool:
        self.append(data)
        return True


def delivered(switch: Switch) -> list[tuple[int, int, bytes]]:
    """Everything that comes out, at its due time: (time, port, frame)."""
    out: list[tuple[int, int, bytes]] = []
    now_ns = 0
    while (due := switch.due(now_ns)) is not None:
        now_ns, index = max(now_ns, due[0]), due[1]
        taken = Taken()
        switch.deliver(index, now_ns, taken)
        out += [(now_ns, index, data) for data in taken]
    return out


def test_one_frame_takes_both_delays_and_both_serialisations():
    switch = Switch([PLAIN, PLAIN])
    switch.receive(0, frame(1), 7)
    assert delivered(switch) == [(7 + 4 * MS + 80_000, 1, frame(1))]


def test_frames_are_pipelined_over_the_two_links():
    switch = Switch([replace(PLAIN, queue_bytes=1 << 20)] * 2)
    for _ in range(10):
        switch.receive(0, frame(1), 0)
    assert [at for at, _, _ in delivered(switch)] == [
        4 * MS + 80_000 + 40_000 * k for k in range(10)
    ]


def test_looking_late_delivers_late_but_not_ever_later():
    """Due times hang on arrival times: a stall delays what was due in it and nothing after."""
    switch = Switch([replace(PLAIN, queue_bytes=1 << 20)] * 2)
    for k in range(10):
        switch.receive(0, frame(1), k * MS)
    stall_ns = 8 * MS
    first = switch.due(stall_ns)
    assert first == (4 * MS + 80_000, 1)
    for _ in range(4):
        switch.deliver(1, stall_ns, lambda _: True)
    assert switch.due(stall_ns) == (8 * MS + 80_000, 1)


def test_a_full_queue_drops_at_its_tail():
    switch = Switch([PLAIN, FREE])
    for number in range(5):
        switch.receive(0, frame(1, number=number), 0)
    # The queue holds two packets, that being sent among them.
    assert [data[14:18] for _, _, data in delivered(switch)] == [
        n.to_bytes(4, "big") for n in (0, 1)
    ]
    up = switch.ports[0].up.counters
    assert (up.packets, up.dropped, up.queue_max) == (2, 3, 3000)


def test_an_idle_link_takes_a_packet_that_is_larger_than_its_queue():
    switch = Switch([replace(PLAIN, queue_bytes=0)] * 2)
    switch.receive(0, frame(1), 0)
    assert len(delivered(switch)) == 1


def test_the_down_link_drops_what_several_send_at_once():
    switch = Switch([PLAIN, *[replace(PLAIN, rate_bps=0)] * 6])
    for src in range(1, 7):
        switch.receive(src, frame(0), 0)
    assert len(delivered(switch)) == 2
    assert switch.ports[0].down.counters.dropped == 4


def test_a_nearer_sender_overtakes_a_farther_one():
    near, far = replace(PLAIN, delay_ns=0), replace(PLAIN, delay_ns=9 * MS)
    switch = Switch([PLAIN, far, near])
    switch.receive(1, frame(0, number=1), 0)
    switch.receive(2, frame(0, number=2), MS)
    assert [data[17] for _, _, data in delivered(switch)] == [2, 1]


def test_one_sender_is_never_overtaken_by_itself():
    switch = Switch([FREE, FREE])
    switch.ports[0].faults.extra_ns = 5 * MS
    switch.receive(0, frame(1, number=1), 0)
    switch.ports[0].faults.extra_ns = 0
    switch.receive(0, frame(1, number=2), MS)
    assert [(at, data[17]) for at, _, data in delivered(switch)] == [(5 * MS, 1), (5 * MS, 2)]


def test_broadcast_reaches_all_others():
    switch = Switch([FREE] * 4)
    switch.receive(2, b"\xff" * 6 + bytes(50), 0)
    assert sorted(index for _, index, _ in delivered(switch)) == [0, 1, 3]


@pytest.mark.parametrize(
    "bad",
    [b"", bytes(13), frame(0), frame(2), frame(65535 - 1), bytes((4, 0, 0, 0, 0, 1)) + bytes(60)],
    ids=["empty", "runt", "to itself", "to no port", "to the last number", "not ours"],
)
def test_a_frame_that_leads_nowhere_is_dropped(bad):
    switch = Switch([FREE, FREE])
    switch.receive(0, bad, 0)
    assert delivered(switch) == []
    assert switch.ports[0].up.counters.dropped == 1


def test_what_is_cut_while_under_way_is_lost():
    switch = Switch([PLAIN, PLAIN])
    switch.receive(0, frame(1), 0)
    switch.ports[1].faults.cut = True
    switch.receive(1, frame(0), 0)
    assert delivered(switch) == []
    assert switch.ports[1].down.counters.lost == switch.ports[1].up.counters.lost == 1


def test_a_device_that_takes_nothing_loses_its_frames():
    switch = Switch([FREE, FREE])
    switch.receive(0, frame(1), 0)
    assert switch.due(0) == (0, 1)
    switch.deliver(1, 0, lambda _: False)
    assert switch.ports[1].down.counters.lost == 1
    assert switch.late.count == 0


def test_a_lost_packet_took_its_time_on_the_link():
    switch = Switch([PLAIN, FREE])
    switch.ports[0].faults.drop_ppm = model.PPM
    switch.receive(0, frame(1), 0)
    switch.ports[0].faults.drop_ppm = -1
    switch.receive(0, frame(1), 0)
    assert [at for at, _, _ in delivered(switch)] == [2 * MS + 80_000]


def test_frames_under_way_are_bounded_by_memory(monkeypatch):
    monkeypatch.setattr(model, "MAX_HELD_BYTES", 10_000)
    switch = Switch([replace(FREE, delay_ns=MS)] * 2)
    for _ in range(100):
        switch.receive(0, frame(1), 0)
    assert 5 <= len(delivered(switch)) <= 8
    assert switch.ports[0].up.counters.dropped >= 92
    switch.receive(0, frame(1), 2 * MS)
    assert len(delivered(switch)) == 1


@given(st.integers(0, 2**63 - 1), st.integers(1, 999_999))
def test_a_coin_has_its_share_and_its_seed_repeats_it(seed, ppm):
    coin, again = Random(seed), Random(seed)
    tosses = [coin.happens(ppm) for _ in range(200)]
    assert tosses == [again.happens(ppm) for _ in range(200)]


@pytest.mark.parametrize(
    ("before", "number"),
    [(0, 0xE220A8397B1DCDAF), (1, 0x6E789E6AA1B965F4), (2, 0x06C45D188009454F)],
)
def test_tosses_are_those_of_splitmix64(before, number):
    """Numbers of the algorithm's authors for seed 0."""
    share = number % model.PPM
    for ppm, heads in ((share, False), (share + 1, True)):
        coin = Random(0)
        for _ in range(before):
            coin.happens(1)
        assert coin.happens(ppm) == heads


def test_half_of_many_tosses_are_heads():
    coin = Random(1)
    assert sum(coin.happens(500_000) for _ in range(10_000)) == pytest.approx(5000, abs=250)


def test_certain_coins_draw_no_number():
    coin, fresh = Random(3), Random(3)
    assert not coin.happens(0)
    assert coin.happens(model.PPM)
    assert [coin.happens(500_000) for _ in range(9)] == [fresh.happens(500_000) for _ in range(9)]


def test_lateness_gives_its_shares():
    late = Lateness()
    assert (late.share(0.5), late.max_us) == (0, 0)
    for us in (*range(1, 100), 50_000):
        late.add(us)
    assert (late.share(0.5), late.share(0.99), late.share(1.0)) == (50, 99, 50_000)
    assert (late.max_us, late.count) == (50_000, 100)


def test_a_ports_lines_are_apart():
    port = Port(PLAIN)
    assert port.up.admit(1500, 0)
    assert port.down.free_ns == 0
