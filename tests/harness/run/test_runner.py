"""Real processes on the local testbed: a fake system that keeps the contract, or breaks it."""

import threading

import pytest

from harness.run.judge import judge
from harness.run.runner import Launch, run_repeat
from results.records.schema import ProgramEnd
from testbed.local.local import LocalTestbed
from tpi.options import ComputeOptions
from tpi.program.program_session import Deadlines
from tpi.program.spec import Request

pytestmark = pytest.mark.timeout(60)  # real processes, on whatever machine

WARMUP = Request("warmup", 2, (1, 2, 3), warmup=True)
MEASURED = Request("r0", 4, (1, 2, 3))


class Seen:
    """A watch that keeps what it sees."""

    def __init__(self):
        self.devices = []
        self.events = []

    def started(self, devices):
        self.devices = list(devices)

    def event(self, event):
        if (event.rank, event.name) == (0, "ready"):
            self.devices[0].meter()  # it waits for its `go`, so it is there to be measured
        self.events.append(event)


class Interrupting(Seen):
    """One at which the user presses Ctrl-C when the first token comes."""

    def event(self, event):
        if event.name == "token":
            raise KeyboardInterrupt


def run(tmp_path, world_size=2, deadlines=None, **options):
    launch = Launch(
        system="fake",
        program=("-m", "tests.fake_system"),
        model_dirs=(tmp_path,) * world_size,
        requests=(WARMUP, MEASURED),
        compute=ComputeOptions(max_tokens=16),
        options=options,
        deadlines=deadlines or Deadlines(ready_s=100, token_s=100, end_s=100),
        time_scale=0.1,
    )
    watch = Seen()
    with LocalTestbed(tmp_path / "work") as testbed:
        outcome = run_repeat(launch, testbed, watch)
    return outcome, judge(outcome, 0, "r0", 4), watch


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
    names = [e.name for e in repeat.events if e.rank == 1]
    assert names == ["ready", "counters", "end", "counters", "end"]
    assert seen.events == [*repeat.events]
    assert [device.index for device in seen.devices] == [0, 1]
    assert seen.devices[0].meter().rss_hwm  # after `down` too
    warmup = [e for e in repeat.events if e.request_id == "warmup"]
    assert [e.name for e in warmup if e.rank == 0] == [
        "request", "token", "token", "counters", "end",
    ]  # fmt: skip
    # Rank 1 waits for nobody: it may be gone before it is looked at.
    assert (repeat.peak_memory.rss_hwm[0] or 0) > 1 << 20
    assert repeat.facts.exits == (ProgramEnd(0, oom=False),) * 2


SHORT = Deadlines(ready_s=100, token_s=5.0, end_s=5.0)


# What only breaks the rules of the lines is in `test_contract.py`, without processes.
@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        ({"misdeed": "few"}, "crashed", ["rank 0: request r0 ended with 3 token", "expected 4"]),
        ({"misdeed": "die", "at": 2}, "crashed", ["rank 0", "signal 9"]),
        ({"misdeed": "die", "rank": 1}, "crashed", ["rank 1", "signal 9"]),
        ({"misdeed": "die_silently"}, "crashed", ["rank 0", "ended early with status 0"]),
        ({"misdeed": "error"}, "crashed", ["rank 0: rank-0/attn-003: truncated"]),
        ({"misdeed": "error", "rank": 1}, "crashed", ["rank 1: rank-0/attn-003: truncated"]),
        ({"misdeed": "hang"}, "timeout", ["rank 0: waited 0.5 s for token 2 of 4"]),
        ({"misdeed": "hang", "rank": 1}, "timeout", ["rank 1: waited 0.5 s for end of r0"]),
        ({"misdeed": "junk"}, "crashed", ["rank 0", "not an event", "Traceback"]),
        ({"misdeed": "long_line"}, "crashed", ["rank 0: a line too long for an event"]),
        ({"misdeed": "flood"}, "crashed", ["rank 0: more than the 4 token events"]),
        ({"misdeed": "flood", "rank": 1}, "crashed", ["rank 1: a token from a worker"]),
        ({"misdeed": "flood_junk"}, "crashed", ["rank 0: not an event: 'xxxxx"]),
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
    assert len(outcome.events) < 30
    assert_no_threads_left()


@pytest.mark.parametrize("misdeed", ["flood", "flood_junk"])
def test_run_repeat_ends_a_flood_at_once(tmp_path, misdeed):
    patient = Deadlines(ready_s=6000, token_s=6000, end_s=6000, last_words_s=6000)
    outcome, repeat, _ = run(tmp_path, 2, patient, misdeed=misdeed)
    assert repeat.status == "crashed"
    assert len(outcome.events) < 30


def test_run_repeat_never_ready_names_the_rank(tmp_path):
    deadlines = Deadlines(ready_s=7.5, token_s=10, end_s=10)
    _, repeat, _ = run(tmp_path, 3, deadlines, misdeed="never_ready", rank=2)
    assert (repeat.status, repeat.reason) == ("timeout", "rank 2: waited 0.75 s for ready")


def test_run_repeat_program_that_cannot_start_shows_its_last_line(tmp_path):
    launch = Launch("fake", ("-m", "tests.no_such"), (tmp_path,), (MEASURED,), ComputeOptions())
    with LocalTestbed(tmp_path / "work") as testbed:
        repeat = judge(run_repeat(launch, testbed), 0, "r0", 4)
    assert repeat.status == "crashed"
    assert "No module named tests.no_such" in repeat.reason


def test_run_repeat_interrupt_takes_everything_down(tmp_path):
    launch = Launch(
        "fake", ("-m", "tests.fake_system"), (tmp_path,) * 2, (MEASURED,), ComputeOptions()
    )
    testbed = LocalTestbed(tmp_path / "work")
    with testbed, pytest.raises(KeyboardInterrupt):
        run_repeat(launch, testbed, Interrupting())
    assert_no_threads_left()
