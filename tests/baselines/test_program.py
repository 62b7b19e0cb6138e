"""The program side of the contract, with a model that needs no weights, as real processes."""

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from tpi.events import Event, parse_event
from tpi.spec import NodeSpec, Request, dump_spec

ROOT = Path(__file__).parent.parent.parent
PROGRAM = """
import sys
from baselines.program import main
from tpi.errors import WeightsError

class Model:
    facts = {"notes": ["none"]}
    def generate(self, prompt_ids, new_tokens, on_token):
        for i in range(new_tokens):
            on_token(prompt_ids[0] + i)

def load(spec):
    print("junk on standard output")
    sys.stderr.write("loading\\n")
    BODY
    return Model()

sys.exit(main(load))
"""


def start(tmp_path: Path, body: str = "pass", **changes: Any) -> subprocess.Popen[str]:
    values: dict[str, Any] = {
        "system": "fake", "rank": 0, "world_size": 1, "session": "0" * 32, "bind": "127.0.0.1",
        "master": None, "model_dir": tmp_path, "threads": 1, "dtype": "float32", "max_tokens": 9,
        "requests": (Request("w", 2, (5,), warmup=True), Request("m", 3, (7,))),
    }  # fmt: skip
    dump_spec(NodeSpec(**(values | changes)), tmp_path / "spec.json")
    text = textwrap.dedent(PROGRAM).replace("BODY", body)
    return subprocess.Popen(
        [sys.executable, "-c", text, str(tmp_path / "spec.json")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def finish(process: subprocess.Popen[str], commands: str = "") -> tuple[list[Event], int, str]:
    out, log = process.communicate(commands, timeout=15)
    return [parse_event(line) for line in out.splitlines()], process.returncode, log


def test_requests_are_served_in_the_order_of_their_commands(tmp_path):
    process = start(tmp_path)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("go w\ngo m\n")
    process.stdin.flush()
    events = [parse_event(line) for line in process.stdout]
    assert process.wait(15) == 0
    process.communicate()
    names = ["request", "token", "token", "counters", "end"]
    expected = [("w", n) for n in names] + [("m", n) for n in [*names[:2], *names[1:]]]
    assert [(e.request_id, e.name) for e in events] == [("", "ready"), *expected]
    assert [e.token for e in events if e.name == "token"] == [5, 6, 7, 8, 9]
    stamps = [e.t_ns for e in events if e.request_id == "m"]
    assert stamps == sorted(stamps)
    counters = [e for e in events if e.name == "counters"][-1]
    assert counters.fields["wire_bytes_sent"] == counters.fields["messages_sent_decode"] == 0
    assert counters.number("disk_bytes") >= counters.number("disk_bytes_decode") >= 0
    assert counters.number("rss_hwm") > 1 << 20
    assert events[0].fields["notes"] == ["none"]


def test_input_that_closes_while_idle_ends_it_well(tmp_path):
    process = start(tmp_path)
    assert process.stdin is not None
    assert process.stdout is not None
    assert parse_event(process.stdout.readline()).name == "ready"
    events, code, log = finish(process)
    assert (events, code) == ([], 0)
    assert "junk on standard output" in log


def test_input_that_closes_while_loading_ends_it(tmp_path):
    process = start(tmp_path, "import time; time.sleep(60)")
    assert finish(process)[:2] == ([], 130)


def test_input_that_closes_during_a_request_ends_it(tmp_path):
    endless = (Request("m", 1 << 20, (7,)),)
    process = start(tmp_path, max_tokens=1 << 21, requests=endless)
    events, code, _ = finish(process, "go m\n")
    assert code == 130
    assert not [e for e in events if e.name == "end"]


@pytest.mark.parametrize(
    ("body", "code", "message", "status"),
    [
        ("raise WeightsError('x is cut')", "weights", "x is cut", 14),
        ("raise MemoryError('too much')", "resource", "out of memory: too much", 15),
        ("raise KeyError('k')", "internal", "KeyError: 'k'", 1),
    ],
)
def test_error_is_an_event_and_a_status(tmp_path, body, code, message, status):
    process = start(tmp_path, body)
    assert process.stdout is not None
    event = parse_event(process.stdout.readline())
    assert (event.name, event.fields) == ("error", {"code": code, "message": message})
    assert finish(process)[1] == status


def test_unknown_request_is_refused(tmp_path):
    process = start(tmp_path)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("go z\n")
    process.stdin.flush()
    events = [parse_event(line) for line in process.stdout]
    assert events[-1].fields["code"] == "config"
    assert finish(process)[1] == 2


def test_it_runs_on_one_device_only(tmp_path):
    process = start(tmp_path, world_size=2, master="127.0.0.1:1")
    events, code, _ = finish(process)
    assert code == 2
    assert "runs on one device" in str(events[0].fields["message"])
