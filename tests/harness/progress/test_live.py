"""The view of a run on a terminal of fixed width, and its plain lines; a fake clock, no waiting."""

import io
import re
import threading
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from harness.progress.live import Live
from results.records.schema import PeakMemory, Repeat
from testbed.base import Meters
from tpi.program.events import Event
from tpi.program.spec import Request

MIB = 1 << 20
REQUESTS = (Request("w", 1, (1,), warmup=True), Request("r0", 3, (1,)))
TPI = ("tpi", REQUESTS, 2)
EVENTS = [
    (0, Event("ready", 0)), (1, Event("ready", 0)),
    (0, Event("request", 0, {"id": "w"})), (0, Event("token", 5, {"id": "w", "token": 1})),
    (0, Event("request", 10**9, {"id": "r0"})),
    (0, Event("token", 2 * 10**9, {"id": "r0", "token": 1})),
    (0, Event("token", 4 * 10**9, {"id": "r0", "token": 1})),
    (0, Event("token", 6 * 10**9, {"id": "r0", "token": 1})),
]  # fmt: skip


class Clock:
    """Seconds that pass when told to."""

    def __init__(self):
        self.now_s = 1000.0

    def __call__(self):
        return self.now_s


class Device:
    """A device of which only the meter is looked at."""

    def __init__(self, index, rss_hwm):
        self.index = index
        self.rss_hwm = rss_hwm

    def meter(self):
        return Meters(rss_hwm=self.rss_hwm)


class FormattedCell:
    """A `Live` whose clock stands still, and what is on its screen."""

    def __init__(self, width=120, is_terminal=True):
        self.out = io.StringIO()
        self.clock = Clock()
        console = Console(
            file=self.out, force_terminal=is_terminal, width=width, highlight=False,
            _environ={"TERM": "xterm"},
        )  # fmt: skip
        self.live = Live(console, self.clock, tick_s=None)

    def screen(self, seconds=0.5):
        """What the next refresh draws, line by line."""
        self.clock.now_s += seconds
        self.out.seek(0)
        self.out.truncate()
        self.live.tick()
        plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\r", "", self.out.getvalue())
        return [line.rstrip() for line in plain.splitlines()]


def devices(*mib):
    return [Device(i, num * MIB) for i, num in enumerate(mib)]


def judged(status="ok", events=EVENTS, memory=(500, 400)):
    end = {"id": "r0", "rank": 0}
    return Repeat(
        0, "r0", status, "", (0, 0), PeakMemory(rss_hwm=tuple(m * MIB for m in memory)),
        tuple(replace(event, rank=rank) for rank, event in [*events, (0, Event("end", 7, end))]),
    )  # fmt: skip


HEADINGS = "system        state            repeat     TTFT    token   time  memory"


def test_each_phase_of_a_repeat_is_in_its_systems_row():
    shown = FormattedCell()
    rows = []
    with shown.live.run({"tpi": 2, "transformers": 2}, 2):
        with shown.live.repeat("tpi, repeat 1", *TPI) as watch:
            rows.append(shown.screen())
            watch.started(devices(300, 200))
            rows.append(shown.screen())
            for rank, event in EVENTS:
                watch.event(replace(event, rank=rank))
                rows.append(shown.screen())
        rows.append(shown.screen())
        shown.live.ended("tpi", judged())
        rows.append(shown.screen())
    assert {lines[0] for lines in rows} == {HEADINGS}
    assert {lines[2] for lines in rows} == {"transformers  waiting          0 of 2"}
    assert [lines[1] for lines in rows] == [
        "tpi           starting         1 of 2                     0:00",
        "tpi           loading          1 of 2                     0:01  300 200 MiB",
        "tpi           ready 1 of 2     1 of 2                     0:01  300 200 MiB",
        "tpi           ready 2 of 2     1 of 2                     0:02  300 200 MiB",
        "tpi           warm-up 0/1      1 of 2                     0:02  300 200 MiB",
        "tpi           warm-up 1/1      1 of 2                     0:03  300 200 MiB",
        "tpi           measured 0/3     1 of 2                     0:03  300 200 MiB",
        "tpi           measured 1/3     1 of 2      1 s            0:04  300 200 MiB",
        "tpi           measured 2/3     1 of 2      1 s      2 s   0:04  300 200 MiB",
        "tpi           measured 3/3     1 of 2      1 s      2 s   0:05  300 200 MiB",
        "tpi           checking         1 of 2                     0:05  300 200 MiB",
        "tpi           waiting          1 of 2      1 s      2 s   0:05  500 400 MiB",
    ]


def one_repeat(shown, system, seconds, status="ok"):
    with shown.live.repeat(f"{system}, repeat", system, REQUESTS, 2) as watch:
        watch.started(devices(100, 100))
        shown.screen(seconds)
    shown.live.ended(system, judged(status))


def test_last_line_tells_how_far_the_run_is_and_how_long_it_may_take():
    shown = FormattedCell(width=80)
    last = []
    with shown.live.run({"tpi": 2, "transformers": 2}, 2):
        last.append(shown.screen(0)[-1])
        one_repeat(shown, "tpi", 60)
        last.append(shown.screen(0)[-1])  # three more like this one
        one_repeat(shown, "transformers", 20)
        last.append(shown.screen(0)[-1])  # 60 + 20
        with shown.live.repeat("tpi, repeat 2", *TPI):
            last.append(shown.screen(15)[-1])
        shown.live.ended("tpi", judged("crashed"))
        last.append(shown.screen(0)[-1])
    pattern = r"(\S+) elapsed, repeats: (\d) of (\d) \S+(?: about (\S+) left)?"
    found = [re.fullmatch(pattern, line) for line in last]
    assert [m and m.groups() for m in found] == [
        ("0:00", "0", "4", None), ("1:00", "1", "4", "3:00"), ("1:20", "2", "4", "1:20"),
        ("1:35", "2", "4", "1:05"), ("1:35", "3", "4", "0:20"),
    ]  # fmt: skip


def test_ended_system_is_done_with_its_times_or_failed_with_its_status():
    shown = FormattedCell(width=80)
    with shown.live.run({"tpi": 1, "transformers": 2}, 2):
        one_repeat(shown, "tpi", 7)
        one_repeat(shown, "transformers", 3, "wrong_output")
        assert shown.screen(0)[1:3] == [
            "tpi          done            2 of 2     1 s     2 s  0:07 2x ≤500 MiB",
            "transformers wrong_output    2 of 2                  0:03 2x ≤500 MiB",
        ]


@pytest.mark.parametrize("width", [1, 5, 20, 40, 60, 79, 80, 100, 120, 200])
def test_every_line_fits_any_terminal(width):
    shown = FormattedCell(width)
    name = "transformers-window"
    with (
        shown.live.run({name: 3, "tpi": 3}, 3),
        shown.live.repeat(f"{name}, repeat 1", name, REQUESTS, 7) as watch,
    ):
        watch.started(devices(*range(1000, 1007)))
        for rank, event in EVENTS:
            watch.event(replace(event, rank=rank))
        with shown.live.waiting("reference: Transformers in float32"):
            lines = shown.screen(4000)
    assert max(len(line) for line in lines) <= width
    if width >= 80:
        assert "…" not in "".join(lines)
        assert "measured 3/3" in lines[1]


def test_what_goes_on_beside_the_table_stands_below_it():
    shown = FormattedCell(width=80)
    with shown.live.run({"tpi": 1}, 1), shown.live.waiting("reference: [x]"):
        lines = shown.screen(65)
    assert lines[2] == "reference: [x] 1:05"
    assert lines[3].startswith("1:05 elapsed")


def test_before_a_run_what_is_written_or_checked_is_a_line():
    shown = FormattedCell(width=80)
    with shown.live.writing("shards") as progress:
        progress(1 * MIB, 1024 * MIB)
        assert re.fullmatch(r"shards \S+ 1 MiB of 1 GiB, 0:01", shown.screen(1)[0])
    with shown.live.repeat("check: two layers", *TPI) as watch:
        watch.started(devices(30, 20))
        (line,) = shown.screen(1)
        assert re.fullmatch(r"check: two layers \S+ loading, devices: 2, memory 2x ≤3.*", line)
    assert shown.screen() == []


def test_lines_stay_above_the_view_which_goes_away():
    shown = FormattedCell(width=80)
    with shown.live.run({"tpi": 1}, 1):
        shown.live.line("tpi [x]: kept")
    text = shown.out.getvalue()
    assert "tpi [x]: kept\n" in text
    assert text.endswith("\x1b[2K")  # what was drawn last is erased
    assert "\x1b[?25h" in text  # and the cursor is there again


def test_interrupt_ends_the_view_and_its_thread():
    out = io.StringIO()
    live = Live(Console(file=out, force_terminal=True, width=80, _environ={"TERM": "xterm"}))

    def is_ticking():
        return "live" in [thread.name for thread in threading.enumerate()]

    def interrupted():
        with live.run({"tpi": 1}, 1):
            assert is_ticking()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not is_ticking()
    assert "\x1b[?25h" in out.getvalue()


@pytest.mark.parametrize("is_terminal", [True, False])
def test_view_is_refreshed_by_a_thread_of_its_own(is_terminal):
    seen = threading.Event()

    class Watched(Device):
        def meter(self):
            seen.set()
            return super().meter()

    fakes: list[Any] = [Watched(0, MIB)]
    console = Console(file=io.StringIO(), force_terminal=is_terminal, width=80)
    live = Live(console, tick_s=0.001)
    with live.run({"tpi": 1}, 1), live.repeat("tpi, repeat 1", *TPI) as watch:
        watch.started(fakes)
        assert seen.wait(5)


def test_dumb_terminal_gets_plain_lines():
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=80, _environ={"TERM": "dumb"})
    with Live(console, tick_s=None).waiting("reference"):
        pass
    assert out.getvalue() == "reference ...\n"


def test_plain_output_is_a_line_at_the_start_and_at_most_one_each_half_minute():
    shown = FormattedCell(width=80, is_terminal=False)
    lines = []
    with (
        shown.live.run({"tpi": 2}, 2),
        shown.live.repeat("tpi, repeat 1 [x]", *TPI) as watch,
    ):
        assert shown.out.getvalue() == "tpi, repeat 1 [x] ...\n"
        lines += shown.screen(29) + shown.screen(1) + shown.screen(29)
        watch.started(devices(300, 200))
        lines += shown.screen(30)
        for rank, event in EVENTS:
            watch.event(replace(event, rank=rank))
            lines += shown.screen(15)
        shown.live.line("something else")
        lines += shown.screen(20)
    assert lines == [
        "tpi, repeat 1 [x]: starting, devices: 2, 0:30",
        "tpi, repeat 1 [x]: loading, devices: 2, memory 2x ≤300 MiB, 1:29",
        "tpi, repeat 1 [x]: ready 2 of 2, devices: 2, memory 2x ≤300 MiB, 1:59",
        "tpi, repeat 1 [x]: warm-up, token 1 of 1, TTFT 0.005 µs, memory 2x ≤300 MiB, 2:29",
        "tpi, repeat 1 [x]: measured, token 1 of 3, TTFT 1 s, memory 2x ≤300 MiB, 2:59",
        "tpi, repeat 1 [x]: measured, token 3 of 3, 2 s/token, memory 2x ≤300 MiB, 3:29",
    ]
