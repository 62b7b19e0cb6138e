import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.sim.devices import Block, Devices
from tpi.planner.window_replay import BlockTimes, predict_step

BLOCKS = st.lists(
    st.tuples(st.integers(1, 40), st.integers(0, 40), st.one_of(st.none(), st.integers(1, 40))),
    min_size=2, max_size=9,
)  # fmt: skip


def block(load, label="attn.0", ranks=None):
    streamed = np.array([0] if load is not None else [], dtype=np.int64)
    values = np.array([load] if load is not None else [], dtype=np.int64)
    return Block(label, ranks, streamed, values, values)


def run_cycle(devices, times):
    for compute, after, load in times:
        devices.run(block(load), np.array([compute]))
        devices.now += after


@settings(max_examples=40, deadline=None)
@given(BLOCKS, st.integers(1, 4))
def test_the_window_is_that_of_the_planner(times, window):
    streamed = sum(load is not None for *_, load in times)
    if window >= streamed:
        window = None
    kept = [(c, a, None) for c, a, _ in times] if window is None else times
    devices = Devices([window or 1])
    ends, waits = [0], []
    for _ in range(4):  # as many cycles as the planner replays
        run_cycle(devices, kept)
        ends.append(int(devices.now[0]))
        waits.append(int(devices.tally.wait[0]))
    # The planner's loader starts at 0, ours long ago: the first blocks are there already.
    steady = predict_step([BlockTimes(*map(_float, each)) for each in times], window)
    assert ends[4] - ends[3] == pytest.approx(steady.step_s)
    assert waits[3] - waits[2] == pytest.approx(steady.stall_s)


def _float(value):
    return None if value is None else float(value)


def test_a_full_window_makes_nobody_wait():
    devices = Devices([2])
    devices.start_at(100)
    devices.run(block(50), np.array([10]))
    devices.run(block(50), np.array([10]))
    assert devices.now[0] == 120
    devices.run(block(50), np.array([10]))  # its place was given back at 110
    assert (devices.now[0], devices.tally.wait[0]) == (170, 40)


def test_filling_takes_the_first_blocks_of_the_window():
    assert Devices([2]).fill([block(50), block(None), block(30), block(20)]) == 80


def test_a_block_that_is_skipped_is_read_if_its_reading_has_begun():
    devices = Devices([1], keep=True)
    devices.start_at(0)
    devices.run(block(50), np.array([10]))
    devices.now += 20
    devices.skip(block(100))  # began at 10, ends at 110
    (load,) = (span for span in devices.spans if span.name == "load" and span.start[0] >= 0)
    assert (load.start.tolist(), load.end.tolist()) == ([10], [110])
    devices.skip(block(100))  # there is no room for it before 30
    devices.run(block(50), np.array([10]))
    assert devices.now[0] == 170
    assert devices.tally.disk[0] == 100


def test_ranks_without_a_part_do_nothing():
    devices = Devices([1, 1], keep=True)
    devices.run(Block("ffn.3", np.array([1]), *[np.zeros(0, dtype=np.int64)] * 3), np.array([5, 7]))
    assert devices.now.tolist() == [0, 7]
    (span,) = devices.spans
    assert (span.name, span.label, span.ranks.tolist()) == ("compute", "ffn.3", [1])
