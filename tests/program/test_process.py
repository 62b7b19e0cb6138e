"""Output cut anywhere becomes the same lines, and a full inbox holds up only who still runs."""

import queue

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.docker.exec_process import BoundedLog
from tpi.program.events import MAX_LINE_BYTES
from tpi.program.process import Exit, LineFeeder, Output


def fed(pieces):
    inbox: queue.Queue[Output] = queue.Queue()
    feeder = LineFeeder(2, inbox)
    for piece in pieces:
        feeder.feed(piece)
    feeder.finish()
    return [inbox.get_nowait() for _ in range(inbox.qsize())]


@given(st.lists(st.sampled_from([b"a", b"\n", b"bc", b"\n\n", b"d\ne"])))
def test_lines_do_not_depend_on_where_output_is_cut(pieces):
    whole = b"".join(pieces)
    expected = whole.split(b"\n")
    if not expected[-1]:
        expected.pop()
    assert [output.line for output in fed(pieces)] == expected


def test_long_line_is_cut_once_and_the_next_is_whole():
    half = b"x" * (MAX_LINE_BYTES // 2 + 1)
    first, second = fed([half, half, half, half + b"\nnext\n"])
    assert (first.truncated, len(first.line)) == (True, MAX_LINE_BYTES)
    assert (second.truncated, second.line, second.device) == (False, b"next", 2)


def test_what_does_not_fit_while_stopping_is_dropped():
    inbox: queue.Queue[Output] = queue.Queue(1)
    feeder = LineFeeder(0, inbox)
    feeder.feed(b"a\n")
    waiting = [feeder.is_waiting]
    feeder.stopping = True
    feeder.feed(b"b\n")
    feeder.put_exit(Exit(0, stopped=True, oom=False, t_ns=1))
    assert [*waiting, feeder.is_waiting] == [True, False]
    assert inbox.get_nowait().line == b"a"
    assert inbox.empty()


def test_log_is_bounded_and_its_tail_is_the_last_that_came(tmp_path):
    log = BoundedLog(tmp_path / "log", max_bytes=100)
    for i in range(1000):
        log.write(b"line %d\n" % i)
    log.close()
    log.write(b"after the end")
    assert len((tmp_path / "log").read_bytes()) < 200
    assert b"was not kept" in (tmp_path / "log").read_bytes()
    assert "line 999\nafter the end" in log.tail
    assert len(log.tail) <= 4096


def test_log_is_never_written_over_something(tmp_path):
    (tmp_path / "log").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        BoundedLog(tmp_path / "log")
