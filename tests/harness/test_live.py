import io
from pathlib import Path

from rich.console import Console

import harness.live
from harness.live import Live
from harness.runner import Launch
from tpi.events import Event
from tpi.spec import Request

LAUNCH = Launch(
    "tpi",
    ("-m", "x"),
    (Path("a"), Path("b")),
    (Request("w", 1, (1,), warmup=True), Request("r0", 3, (1,))),
    max_tokens=8,
)
EVENTS = [
    (0, Event("ready", 0)), (1, Event("ready", 0)),
    (0, Event("request", 0, {"id": "w"})), (0, Event("token", 5, {"id": "w", "token": 1})),
    (0, Event("request", 10**9, {"id": "r0"})),
    (0, Event("token", 2 * 10**9, {"id": "r0", "token": 1})),
    (0, Event("token", 4 * 10**9, {"id": "r0", "token": 1})),
]  # fmt: skip


def show(is_terminal):
    out = io.StringIO()
    console = Console(file=out, force_terminal=is_terminal, width=120)
    live = Live(console)
    with live.repeat("tpi, repeat 1 [x]", LAUNCH) as watch:
        for rank, event in EVENTS:
            watch(rank, event)
    return out.getvalue()


def test_plain_output_is_a_line_at_the_start_and_then_rarely():
    assert show(is_terminal=False) == "tpi, repeat 1 [x] ...\n"


def test_plain_output_tells_how_far_it_is_now_and_then(monkeypatch):
    monkeypatch.setattr(harness.live, "_LINE_EVERY_S", -1)
    lines = show(is_terminal=False).splitlines()
    assert lines[1:] == [
        "tpi, repeat 1 [x]: starting 2 devices",
        "tpi, repeat 1 [x]: 1 of 2 devices ready",
        "tpi, repeat 1 [x]: 2 of 2 devices ready",
        "tpi, repeat 1 [x]: warm-up: prefill",
        "tpi, repeat 1 [x]: warm-up: token 1 of 1, TTFT 0.005 µs",
        "tpi, repeat 1 [x]: measured: prefill",
        "tpi, repeat 1 [x]: measured: token 1 of 3, TTFT 1 s",
        "tpi, repeat 1 [x]: measured: token 2 of 3, 2 s/token",
    ]


def test_terminal_shows_a_bar_that_goes_away():
    text = show(is_terminal=True)
    assert "tpi, repeat 1 [x]" in text
    assert "token 2 of 3" in text
    assert "\x1b[2K" in text


def test_bytes_written_are_shown_with_their_total(monkeypatch):
    monkeypatch.setattr(harness.live, "_LINE_EVERY_S", -1)
    out = io.StringIO()
    with Live(Console(file=out, width=100)).writing("shards") as progress:
        progress(1 << 20, 1 << 30)
    assert out.getvalue().splitlines()[1:] == ["shards: 1 MiB of 1 GiB"]
