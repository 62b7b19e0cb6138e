"""The program side of the contract, with a model that needs no weights, as real processes."""

import subprocess
import sys
import textwrap
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tpi.options import ComputeOptions
from tpi.program.events import Event, parse_event
from tpi.program.spec import NodeSpec, Request, dump_spec

pytestmark = pytest.mark.timeout(60)  # real processes, on whatever machine

ROOT = Path(__file__).parent.parent.parent
PROGRAM = """
import sys
from baselines.library_program import LibraryModel, main
from tpi.errors import WeightsError

class Model(LibraryModel):
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
# A model of several ranks: its workers are told through a folder what comes next.
SHARED = """
import json, sys, time
from pathlib import Path
from baselines.library_program import LibraryModel, main
from tpi.trace import Tracer

class Model(LibraryModel):
    facts = {}
    def __init__(self, spec):
        self.folder, self.turn, self.num_bytes, self.tracer = spec.model_dir, 0, 0, Tracer()
    def announce(self, request):
        self.say([request.id, list(request.prompt_ids)])
    def say(self, what):
        (self.folder / "new").write_text(json.dumps(what))
        (self.folder / "new").rename(self.folder / f"turn-{self.turn}")
        self.turn += 1
    def follow(self):
        while not (path := self.folder / f"turn-{self.turn}").exists():
            time.sleep(0.01)
        self.turn += 1
        return json.loads(path.read_text())
    def sent(self):
        return self.num_bytes, None
    def generate(self, prompt_ids, new_tokens, on_token):
        for i in range(new_tokens):
            self.tracer.add("wait_weights", 0, 2)
            self.tracer.add("allreduce", 0, 1)
            self.num_bytes += 100
            on_token(prompt_ids[0] + i)
    def __enter__(self):
        return self
    def __exit__(self, kind, *rest):
        if SPEC.rank == 0 and kind is None:
            self.say(None)
        (self.folder / f"left-{SPEC.rank}").touch()

def load(spec):
    global SPEC
    SPEC = spec
    return Model(spec)

sys.exit(main(load, shared=True))
"""


def start(
    tmp_path: Path, body: str = "pass", program: str = PROGRAM, **changes: Any
) -> subprocess.Popen[str]:
    values: dict[str, Any] = {
        "system": "fake", "rank": 0, "world_size": 1, "session": "0" * 32, "bind": "127.0.0.1",
        "master": None, "model_dir": tmp_path, "threads": 1,
        "compute": ComputeOptions(max_tokens=9),
        "requests": (Request("w", 2, (5,), warmup=True), Request("m", 3, (7,))),
    }  # fmt: skip
    spec = NodeSpec(**(values | changes))
    path = tmp_path / f"spec-{spec.rank}.json"
    dump_spec(spec, path)
    text = textwrap.dedent(program).replace("BODY", body)
    return subprocess.Popen(
        [sys.executable, "-c", text, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def finish(process: subprocess.Popen[str], commands: str = "") -> tuple[list[Event], int, str]:
    out, log = process.communicate(commands, timeout=15)
    return [parse_event(line) for line in out.splitlines()], process.returncode, log


def obey(process: subprocess.Popen[str], commands: str) -> list[Event]:
    """Everything it says until it has ended well by itself, its input still open."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(commands)
    process.stdin.flush()
    events = [parse_event(line) for line in process.stdout]
    assert process.wait(15) == 0
    process.communicate()
    return events


def test_requests_are_served_in_the_order_of_their_commands(tmp_path):
    events = obey(start(tmp_path), "go w\ngo m\n")
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
    # From go to the last token, all of it computing: this model neither waits nor sends.
    tokens = [e.t_ns for e in events if e.name == "token"]
    begun = [e.t_ns for e in events if e.name == "request"]
    assert counters.fields["compute_s"] == (tokens[-1] - begun[-1]) / 1e9
    assert counters.fields["allreduce_s"] == counters.fields["wait_weights_s"] == 0
    assert events[0].fields["notes"] == ["none"]


def test_spans_of_the_measured_request_are_written_if_asked_for(tmp_path):
    events = obey(start(tmp_path, keep_spans=True), "go w\ngo m\n")
    (spans,) = [e for e in events if e.name == "spans"]
    assert (spans.request_id, events[-1].name, events[-2]) == ("m", "end", spans)
    go, *tokens = [e.t_ns for e in events if e.request_id == "m" and e.name in ("request", "token")]
    expected = [["compute", a, b, ""] for a, b in pairwise([go, *tokens]) if a < b]
    assert spans.fields["spans"] == expected


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
    process = start(tmp_path, compute=ComputeOptions(max_tokens=1 << 21), requests=endless)
    events, code, _ = finish(process, "go m\n")
    assert code == 130
    assert not [e for e in events if e.name == "end"]


@pytest.mark.parametrize(
    ("body", "code", "message", "status"),
    [
        ("raise WeightsError('x is cut')", "weights", "x is cut", 14),
        ("raise MemoryError('too much')", "resource", "rank 0 is out of memory: too much", 15),
        (
            'raise RuntimeError("can\'t allocate memory: 9 bytes")',
            "resource",
            "rank 0 is out of memory: can't allocate memory: 9 bytes",
            15,
        ),
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


def start_shared(tmp_path, **changes):
    asked = (Request("a", 2, (5,)), Request("b", 3, (7,)))
    hidden = tuple(Request(r.id, r.new_tokens) for r in asked)
    shared = {"world_size": 2, "master": "127.0.0.1:1", **changes}
    return (
        start(tmp_path, program=SHARED, requests=asked, **shared),
        start(tmp_path, program=SHARED, rank=1, requests=hidden, **shared),
    )


def test_worker_follows_the_master_and_ends_with_it(tmp_path):
    master, worker = start_shared(tmp_path)
    # Another order than the spec's: what counts is what the master says.
    events = obey(master, "go b\ngo a\n")
    names = ["request", "token", "token", "token", "counters", "end"]
    assert [e.name for e in events if e.request_id == "b"] == names
    assert [e.token for e in events if e.name == "token"] == [7, 8, 9, 5, 6]
    followed = obey(worker, "")
    assert [(e.name, e.request_id) for e in followed] == [
        ("ready", ""), ("counters", "b"), ("end", "b"), ("counters", "a"), ("end", "a"),
    ]  # fmt: skip
    assert {path.name for path in tmp_path.glob("left-*")} == {"left-0", "left-1"}
    for said, rank in ((events, 0), (followed, 1)):
        counters = next(e for e in said if e.name == "counters").fields
        assert counters["rank"] == rank
        assert (counters["wire_bytes_sent"], counters["wire_bytes_sent_decode"]) == (300, 200)
        assert counters["messages_sent"] is counters["messages_sent_decode"] is None
        assert counters["wait_weights_s"] == pytest.approx(6e-9)
        assert counters["allreduce_s"] == pytest.approx(3e-9)


def test_idle_worker_whose_input_closes_ends_after_a_grace(tmp_path):
    master, worker = start_shared(tmp_path, time_scale=0.01)
    assert worker.stdout is not None
    assert parse_event(worker.stdout.readline()).name == "ready"
    assert finish(worker)[:2] == ([], 130)
    assert finish(master)[1] == 0


def test_worker_of_a_model_for_one_is_refused(tmp_path):
    program = PROGRAM.replace("main(load)", "main(load, shared=True)")
    process = start(
        tmp_path, program=program, rank=1, world_size=2, master="127.0.0.1:1", requests=()
    )
    assert process.stdout is not None
    assert parse_event(process.stdout.readline()).name == "ready"
    assert "has no workers" in str(parse_event(process.stdout.readline()).fields["message"])
    assert finish(process)[1] == 2
