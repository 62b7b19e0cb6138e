from dataclasses import replace

import pytest

from tpi.comm.deadlines import Deadlines, Wait, overdue
from tpi.errors import PeerStalledError, PeerTimeoutError

LIMITS = Deadlines()
FRESH = Wait(
    waited_s=0, silent_s=0, still_s=0, frame_s=None, receiving=True, sending=False, idle=False,
    peer_waits=False, heard=True, done="0 of 112 bytes",
)  # fmt: skip


def verdict(**changes):
    return overdue(replace(FRESH, **changes), LIMITS, 2, "rank 0 was at the attn sum of step 1")


@pytest.mark.parametrize(
    "changes",
    [
        {}, {"silent_s": 10.0}, {"still_s": 120.0}, {"frame_s": 30.0},
        {"still_s": 1e6, "idle": True}, {"still_s": 239, "peer_waits": True},
        {"silent_s": 1e6, "heard": False}, {"sending": True, "receiving": False, "frame_s": 31},
        {"sending": True, "waited_s": 120},
    ],
)  # fmt: skip
def test_no_false_alarm(changes):
    assert verdict(**changes) is None


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"silent_s": 10.1}, PeerTimeoutError, "no heartbeat for 10 s"),
        ({"silent_s": 10.1, "idle": True}, PeerTimeoutError, "rank 2 is silent"),
        ({"still_s": 120.1}, PeerStalledError, "no progress for 120 s"),
        ({"still_s": 240.1, "peer_waits": True}, PeerStalledError, "no progress for 240 s"),
        ({"frame_s": 30.1}, PeerStalledError, "within 30 s of its first byte, after 0 of 112"),
        ({"sending": True, "waited_s": 120.1}, PeerStalledError, "does not read"),
    ],
)
def test_error_says_who_what_how_long(changes, error, text):
    found = verdict(**changes)
    assert type(found) is error
    assert text in str(found)
    assert "rank 2" in str(found)
    assert "rank 0 was at the attn sum" in str(found)


def test_scaled_scales_all():
    assert Deadlines().scaled(0.5) == Deadlines(30, 2.5, 15, 5, 60, 1, 0.5)


def test_the_clock_is_looked_at_often_enough():
    assert Deadlines().tick_s == 0.25
    assert Deadlines(dead_s=0.2).tick_s == pytest.approx(0.01)
