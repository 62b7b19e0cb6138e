"""`tpi generate` as people use it: ends cleanly when told to, and names who broke it."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.checkpoints import PROMPT_IDS, make_checkpoint, reference_tokens
from tests.nodes import split_checkpoint
from tpi.errors import PeerLostError, TpiError, WeightsError
from tpi.launch import GenerateOptions, generate
from tpi.program.local_process import LocalProcess

LONG = 20000
SRC = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Three ranks and room for a generation that no test waits for."""
    folder = tmp_path_factory.mktemp("model")
    return split_checkpoint(folder, "gqa2", 3, max_position_embeddings=LONG + 64)


READY = 'print(\'{"event": "ready", "t_ns": 9223372036854775807}\', flush=True)\n'
WAIT = "import sys; sys.stdin.read()\n"
KILLED = (
    "import os, sys; print('my last line', file=sys.stderr, flush=True); os.kill(os.getpid(), 9)\n"
)
ACCUSES = (
    'print(\'{"event": "error", "t_ns": 1, "code": "%s", "message": "%s"}\', flush=True)\n' + WAIT
)


def error_of(programs, monkeypatch, tmp_path):
    """What `generate` raises if its nodes are these lines of Python."""
    shards = split_checkpoint(tmp_path / "model", "mha", len(programs))

    def start(spec, folder, inbox):
        log = folder / f"rank-{spec.rank}.log"
        return LocalProcess(spec.rank, [sys.executable, "-c", programs[spec.rank]], inbox, log)

    monkeypatch.setattr("tpi.launch.start_node", start)
    with pytest.raises(TpiError) as caught:
        generate(GenerateOptions(shards, None, "3,4"), lambda _text: None)
    return caught.value


def test_rank_that_dies_without_a_word_is_named_by_what_the_others_say(monkeypatch, tmp_path):
    told = ACCUSES % ("weights", "rank 1 has a bad block")
    late = "import time; time.sleep(0.5)\n" + told  # the end of rank 1 comes first
    error = error_of([late, KILLED], monkeypatch, tmp_path)
    assert isinstance(error, WeightsError)
    assert re.search("bad block.*rank 1 ended with signal SIGKILL.*my last line", str(error))


@pytest.mark.parametrize("programs", [["raise SystemExit(7)", WAIT], [WAIT, KILLED]])
def test_rank_of_which_nobody_says_why_it_died_is_named_with_its_status_and_log(
    programs, monkeypatch, tmp_path
):
    error = error_of(programs, monkeypatch, tmp_path)
    assert isinstance(error, PeerLostError)
    assert re.search(r"rank \d is gone; rank \d ended with (status 7|signal SIGKILL)", str(error))


def test_go_to_a_dead_master_is_told_as_its_death(monkeypatch, tmp_path):
    error = error_of([READY + KILLED], monkeypatch, tmp_path)
    assert "rank 0 ended with signal SIGKILL" in str(error)


@pytest.mark.slow
@pytest.mark.timeout(90)
def test_stop_token_ends_the_text_before_all_tokens_are_made(tmp_path):
    expected = list(reference_tokens(make_checkpoint(tmp_path / "whole", "mha")))
    shards = split_checkpoint(tmp_path / "model", "mha", 2, eos_token_id=expected[5])
    shown: list[str] = []
    prompt = ",".join(map(str, PROMPT_IDS))
    summary = generate(GenerateOptions(shards, None, prompt, new_tokens=12), shown.append)
    tokens = expected[: expected.index(expected[5]) + 1]
    assert [int(text) for text in "".join(shown).split()] == tokens
    assert summary.num_tokens == len(tokens)
    assert len(summary.peak_bytes) == 2


@contextmanager
def generating(shards, tmp_path):
    """A `tpi generate` that has shown its first token; yields it and its children's ids."""
    command = [
        sys.executable, "-m", "tpi.cli", "generate", shards, "--new-tokens", LONG,
        "--prompt-tokens", ",".join(map(str, PROMPT_IDS)), "--ignore-eos", "--threads", 1,
    ]  # fmt: skip
    (tmp_path / "tmp").mkdir()
    process = subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=SRC,
        env=os.environ | {"TMPDIR": str(tmp_path / "tmp")},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        first = process.stdout.read(1)
        assert first.isdigit(), process.communicate()
        children = children_of(process.pid)
        assert len(children) == 3
        yield process, children
    finally:
        process.kill()
        process.communicate()


def children_of(pid):
    return [
        int(child)
        for task in Path(f"/proc/{pid}/task").iterdir()
        for child in (task / "children").read_text().split()
    ]


def assert_nothing_is_left(children, tmp_path):
    for pid in children:
        assert not Path(f"/proc/{pid}").exists() or zombie(pid), f"process {pid} is alive"
    assert list((tmp_path / "tmp").iterdir()) == []


def zombie(pid):
    """It has ended and only nobody has asked how: an orphan in a container without an init."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


@pytest.mark.slow
@pytest.mark.timeout(90)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_ends_every_node_and_leaves_nothing(shards, tmp_path, number):
    with generating(shards, tmp_path) as (process, children):
        start = time.monotonic()
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
        assert time.monotonic() - start < 5
        assert process.returncode == 130
        assert err.decode() == "tpi generate: interrupted\n"
        assert all(part.isdigit() for part in out.split())
        assert_nothing_is_left(children, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(90)
def test_second_interrupt_kills_the_nodes_at_once_and_leaves_nothing(shards, tmp_path):
    with generating(shards, tmp_path) as (process, children):
        os.kill(children[1], signal.SIGSTOP)  # one that cannot end by itself
        process.send_signal(signal.SIGINT)
        while Path(f"/proc/{children[0]}").exists() and not zombie(children[0]):
            threading.Event().wait(0.02)  # the first Ctrl-C has come as far as the nodes
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
        assert time.monotonic() - start < 2
        assert process.returncode == 130
        assert err.decode() == "tpi generate: interrupted\n"
        assert_nothing_is_left(children, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(90)
def test_killed_worker_is_named_in_one_line(shards, tmp_path):
    with generating(shards, tmp_path) as (process, children):
        os.kill(children[1], signal.SIGKILL)
        _, err = process.communicate(timeout=20)
        assert process.returncode == 10
        assert err.decode().count("\n") == 1
        assert "rank 1" in err.decode()
        assert_nothing_is_left(children, tmp_path)
