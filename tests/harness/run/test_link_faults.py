"""Faults of links begin with the measured request and end with the repeat."""

import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from harness.config.profiles import LinkFault
from harness.run.annotate import disturbed
from harness.run.link_faults import FaultyRun
from results.records.schema import RepeatFacts
from testbed.base import DeviceError
from testbed.local.local import LocalTestbed
from tests.results.examples import make_repeat
from tpi.errors import ConfigError
from tpi.program.events import parse_event

GO = parse_event('{"event": "request", "t_ns": 1, "id": "r0", "prompt_tokens": 2}')


class FakeTestbed(LocalTestbed):
    """Records what is asked of its links."""

    def __init__(self, count, error=None):
        super().__init__(Path("/nonexistent"))
        self.calls = []
        self.enough = threading.Event()
        self._count, self._error = count, error

    def wait_for(self, calls):
        deadline = time.monotonic() + 5
        while not set(calls) <= set(self.calls):
            assert time.monotonic() < deadline
            self.enough.wait(0.01)

    def fault(self, index, kind, value):
        self.calls.append((index, kind, value))
        if len(self.calls) == self._count:
            self.enough.set()
        if self._error:
            raise self._error


class FakeWatch:
    def __init__(self):
        self.seen = []

    def started(self, devices):
        self.seen.append("started")

    def event(self, event):
        self.seen.append((event.rank, event.name))


def run(faults, count, request_id="r0", rank=0, dilation=1.0, error=None):
    testbed, watch = FakeTestbed(count, error), FakeWatch()
    with FaultyRun(watch, testbed, faults, request_id, dilation) as faulty:
        faulty.started([])
        faulty.event(replace(GO, rank=rank))
        if count:
            assert testbed.enough.wait(5)
    return testbed.calls, watch.seen, faulty.log


def test_a_cut_is_made_and_undone_and_everything_is_passed_on():
    calls, seen, log = run([LinkFault(1, "cut", for_s=0.01)], 2)
    assert calls == [(1, "cut", 1.0), (1, "cut", 0.0)]
    assert seen == ["started", (0, "request")]
    assert [done.value for done in log] == [1.0, 0.0]
    assert log[0].t_ns < log[1].t_ns


def test_moments_and_delays_are_dilated():
    calls, _, _ = run([LinkFault(0, "delay", 5, at_s=0.01)], 1, dilation=4)
    assert calls == [(0, "delay", pytest.approx(0.02))]


@pytest.mark.parametrize(("kind", "end"), [("drop", -1.0), ("duplicate", 0.0), ("delay", 0.0)])
def test_each_kind_ends_as_it_began(kind, end):
    calls, _, _ = run([LinkFault(0, kind, 0.5, for_s=0.01)], 2)
    assert calls[-1] == (0, kind, end)


def test_nothing_happens_before_the_measured_request_or_on_a_workers_word():
    fault = [LinkFault(0, "cut")]
    assert run(fault, 0, request_id="other")[0] == []
    assert run(fault, 0, rank=1)[0] == []


def test_what_has_not_happened_by_the_end_does_not_happen():
    assert run([LinkFault(0, "cut", at_s=60)], 0)[0] == []


END = parse_event('{"event": "end", "t_ns": 2, "id": "r0"}')


def test_the_end_of_the_request_undoes_what_is_still_in_force():
    testbed, faults = FakeTestbed(2), [LinkFault(1, "drop", 0.5), LinkFault(0, "cut", for_s=0.01)]
    faults.append(LinkFault(0, "delay", 9, at_s=60))
    with FaultyRun(FakeWatch(), testbed, faults, "r0", 1.0) as faulty:
        faulty.event(GO)
        testbed.wait_for([(0, "cut", 0.0), (1, "drop", 0.5)])
        faulty.event(END)
        assert testbed.calls[3:] == [(1, "drop", -1.0)]


def test_a_link_that_cannot_be_changed_is_told_in_the_record():
    _, _, log = run([LinkFault(0, "cut")], 1, error=DeviceError("the switch is gone"))
    assert log[0].error == "the switch is gone"


@pytest.mark.parametrize("error", [DeviceError("switch: no port 3"), ConfigError("got 1200")])
def test_a_fault_that_cannot_be_made_is_no_fault_that_was_made(error):
    fault = LinkFault(device=3, kind="drop", value=0.5)
    _, _, log = run([fault], 1, error=error)
    assert log[0].error == str(error)
    notes = disturbed(make_repeat(0, 1000, facts=RepeatFacts(link_faults=tuple(log))))
    assert list(map(str, notes)) == [
        "link faults were made during the measured request: 0 changes",
        f"link faults that could not be made: 1, {error}",
    ]
