"""Real processes on the local testbed: a fake system that keeps the contract, or breaks it."""

import threading

import pytest

from harness.runner import Deadlines, Launch, run_repeat
from harness.verdict import judge
from testbed.local import LocalTestbed
from tpi.spec import Request

WARMUP = Request("warmup", 2, (1, 2, 3), warmup=True)
MEASURED = Request("r0", 4, (1, 2, 3))


def run(tmp_path, world_size=2, deadlines=None, **options):
    launch = Launch(
        system="fake",
        program=("-m", "tests.fake_system"),
        model_dirs=(tmp_path,) * world_size,
        requests=(WARMUP, MEASURED),
        max_tokens=16,
        options=options,
        deadlines=deadlines or Deadlines(ready_s=100, token_s=100, end_s=100),
        time_scale=0.1,
    )
    seen = []
    with LocalTestbed(tmp_path / "work") as testbed:
        outcome = run_repeat(launch, testbed, lambda rank, event: seen.append((rank, event)))
    return outcome, judge(outcome, 0, "r0", 4), seen


def assert_no_threads_left():
    for thread in threading.enumerate():
        if thread.name.startswith(("stdout-", "exit-", "meter")):
            thread.join(timeout=2)
            assert not thread.is_alive()


def test_run_repeat_gives_all_events_of_all_ranks(tmp_path):
    outcome, repeat, seen = run(tmp_path, tokens=[5, 6, 7, 8])
    assert (repeat.status, repeat.reason) == ("ok", "")
    assert repeat.tokens == (5, 6, 7, 8)
    assert [e.code for e in outcome.exits] == [0, 0]
    names = [e.event.name for e in repeat.events if e.rank == 1]
    assert names == ["ready", "counters", "end", "counters", "end"]
    assert len(seen) == len(repeat.events)
    warmup = [e for e in repeat.events if e.event.request_id == "warmup"]
    assert [e.event.name for e in warmup if e.rank == 0] == [
        "request", "token", "token", "counters", "end",
    ]  # fmt: skip
    assert all(peak and peak > 1 << 20 for peak in repeat.peak_memory.rss_hwm)
    assert repeat.facts["exits"] == [{"code": 0, "oom": False}] * 2


SHORT = Deadlines(ready_s=100, token_s=5.0, end_s=5.0)


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        ({"misdeed": "few"}, "timeout", ["rank 0", "token 4 of 4 of request r0"]),
        ({"misdeed": "many"}, "invalid", ["5 tokens came, 4 were asked for"]),
        ({"misdeed": "die", "at": 2}, "crashed", ["rank 0", "signal 9"]),
        ({"misdeed": "die", "rank": 1}, "crashed", ["rank 1", "signal 9"]),
        ({"misdeed": "die_silently"}, "crashed", ["rank 0", "ended early with status 0"]),
        ({"misdeed": "error"}, "crashed", ["rank 0: rank-0/attn-003: truncated"]),
        ({"misdeed": "error", "rank": 1}, "crashed", ["rank 1: rank-0/attn-003: truncated"]),
        ({"misdeed": "hang"}, "timeout", ["rank 0: waited 0.5 s for token 2 of 4"]),
        ({"misdeed": "hang", "rank": 1}, "timeout", ["rank 1: waited 0.5 s for end of r0"]),
        ({"misdeed": "junk"}, "invalid", ["rank 0", "not an event", "Traceback"]),
        ({"misdeed": "long_line"}, "invalid", ["rank 0", "too long"]),
        ({"misdeed": "flood"}, "invalid", ["rank 0"]),
        ({"misdeed": "worker_token", "rank": 1}, "invalid", ["rank 1: a token from a worker"]),
        ({"misdeed": "backwards"}, "invalid", ["rank 0: times of events go backwards"]),
        ({"misdeed": "no_counters", "rank": 1}, "invalid", ["rank 1: 0 counters events"]),
        ({"misdeed": "wrong_id"}, "invalid", ["rank 0: token of request 'other'"]),
        ({"misdeed": "exit_1"}, "crashed", ["rank 0: ended early with status 1"]),
        ({"misdeed": "stay"}, "timeout", ["rank 0", "the end of the program"]),
    ],
    ids=lambda v: "-".join(str(x) for x in v.values()) if isinstance(v, dict) else None,
)
def test_run_repeat_names_the_misdeed(tmp_path, options, status, words):
    outcome, repeat, _ = run(tmp_path, deadlines=SHORT, **options)
    assert repeat.status == status
    for word in words:
        assert word in repeat.reason
    assert all(end is not None for end in outcome.exits)
    assert_no_threads_left()


def test_run_repeat_never_ready_names_the_rank(tmp_path):
    deadlines = Deadlines(ready_s=7.5, token_s=10, end_s=10)
    _, repeat, _ = run(tmp_path, 3, deadlines, misdeed="never_ready", rank=2)
    assert (repeat.status, repeat.reason) == ("timeout", "rank 2: waited 0.75 s for ready")


def test_run_repeat_program_that_cannot_start_shows_its_last_line(tmp_path):
    launch = Launch("fake", ("-m", "tests.no_such"), (tmp_path,), (MEASURED,), 16)
    with LocalTestbed(tmp_path / "work") as testbed:
        repeat = judge(run_repeat(launch, testbed), 0, "r0", 4)
    assert repeat.status == "crashed"
    assert "No module named tests.no_such" in repeat.reason


def test_run_repeat_interrupt_takes_everything_down(tmp_path):
    def interrupt(rank, event):
        if event.name == "token":
            raise KeyboardInterrupt

    launch = Launch("fake", ("-m", "tests.fake_system"), (tmp_path,) * 2, (MEASURED,), 16)
    testbed = LocalTestbed(tmp_path / "work")
    with testbed, pytest.raises(KeyboardInterrupt):
        run_repeat(launch, testbed, interrupt)
    assert_no_threads_left()
