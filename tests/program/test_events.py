import contextlib
import json
import os
import subprocess
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpi.errors import ConfigError, PeerLostError
from tpi.program.events import MAX_LINE_BYTES, CommandReader, EventError, EventWriter, parse_event


@pytest.fixture
def pipe():
    read_fd, write_fd = os.pipe()
    files = os.fdopen(read_fd, "rb"), os.fdopen(write_fd, "wb", buffering=0)
    yield files
    for file in reversed(files):  # the writer first, so that a reading thread ends
        file.close()


def test_event_written_is_parsed_again(pipe):
    reader, writer = pipe
    stamp = EventWriter(writer.fileno()).emit("token", id="r0", token=7)
    event = parse_event(reader.readline())
    assert (event.name, event.t_ns, event.request_id, event.token) == ("token", stamp, "r0", 7)


def test_stamp_of_the_caller_is_kept(pipe):
    reader, writer = pipe
    EventWriter(writer.fileno()).emit("request", t_ns=5, id="r0")
    assert parse_event(reader.readline()).t_ns == 5


def test_error_event_has_the_code_of_the_exception(pipe):
    reader, writer = pipe
    events = EventWriter(writer.fileno())
    events.error(PeerLostError("rank 1 is gone"))
    events.error(KeyError("x"))
    ours, other = parse_event(reader.readline()), parse_event(reader.readline())
    assert ours.fields == {"code": "peer_lost", "message": "rank 1 is gone"}
    assert other.fields == {"code": "internal", "message": "KeyError: 'x'"}


def test_events_of_many_threads_stay_whole_lines(pipe):
    reader, writer = pipe
    events = EventWriter(writer.fileno())
    threads = [
        threading.Thread(target=lambda: [events.emit("end", id="r" * 40) for _ in range(50)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    names = [parse_event(reader.readline()).name for _ in range(200)]
    for thread in threads:
        thread.join()
    assert names == ["end"] * 200


def test_print_after_claiming_stdout_does_not_reach_the_events():
    program = (
        "from tpi.program.events import EventWriter; import os\n"
        "e = EventWriter.claim_stdout(); print('junk', flush=True); os.write(1, b'junk')\n"
        "e.emit('end', id='r0')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert [json.loads(line)["event"] for line in done.stdout.splitlines()] == ["end"]
    assert "junk" in done.stderr


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"loading...",
        b"3",
        b"\xff\xfe",
        b"[" * 50_000,
        b'{"event": "tokens", "t_ns": 1}',
        b'{"event": ["ready"], "t_ns": 1}',
        b'{"event": "ready"}',
        b'{"event": "ready", "t_ns": -1}',
        b'{"event": "ready", "t_ns": true}',
        b'{"event": "token", "t_ns": 1, "id": "r0"}',
        b'{"event": "token", "t_ns": 1, "id": "r0", "token": "3"}',
        b'{"event": "error", "t_ns": 1, "code": "x"}',
        b" " * (MAX_LINE_BYTES + 1),
    ],
)
def test_line_that_is_no_event_is_a_named_error(line):
    with pytest.raises(EventError) as caught:
        parse_event(line)
    assert len(str(caught.value)) < 200


@given(st.binary(max_size=200))
def test_any_bytes_are_an_event_or_a_named_error(line):
    with contextlib.suppress(EventError):
        parse_event(line)


def test_numbers_have_a_default():
    event = parse_event('{"event": "counters", "t_ns": 1, "id": "r", "rank": 1, "disk_bytes": 5}')
    assert (event.number("disk_bytes"), event.number("none"), event.number("id", 2)) == (5, 0, 2)


@pytest.fixture
def listen(pipe):
    """Makes a `CommandReader` of the pipe, and waits for its thread in the end."""
    reader, writer = pipe
    readers: list[CommandReader] = []

    def start(on_lease_lost=None) -> CommandReader:
        readers.append(CommandReader(on_lease_lost, reader.fileno()).start())
        return readers[-1]

    yield start
    writer.close()
    for commands in readers:
        while drain(commands) is not None:
            pass


def drain(commands: CommandReader) -> object:
    try:
        return commands.next(5)
    except ConfigError as exc:
        return exc


def test_commands_come_in_order_then_the_lease_ends(pipe, listen):
    lost = threading.Event()
    commands = listen(lost.set)
    pipe[1].write(b"go r0\ngo ")
    pipe[1].write(b"r1\n")
    first, second = commands.next(5), commands.next(5)
    assert (first.request_id, second.request_id) == ("r0", "r1")
    assert first.t_ns <= second.t_ns
    assert not lost.is_set()
    pipe[1].close()
    assert commands.next(5) is None
    assert commands.next(5) is None
    assert lost.wait(5)


@pytest.mark.parametrize("line", [b"\n", b"run r0\n", b"go\n", b"go a b\n", b"\xff\n", b"x" * 5000])
def test_command_that_is_unknown_is_refused(pipe, listen, line):
    commands = listen()
    pipe[1].write(line)
    with pytest.raises(ConfigError, match="unknown command"):
        commands.next(5)


def test_waiting_for_a_command_has_a_deadline(listen):
    with pytest.raises(TimeoutError):
        listen().next(0.01)
