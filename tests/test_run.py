"""`run.py` from the command line, with fake systems, and once with the real ones."""

import csv
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

import run
from harness.config.command_line import CONF_DIR
from harness.run import launch as launching
from harness.run.runner import run_repeat
from results.records.store import RunStore
from testbed.base import DeviceError
from tests.harness.micro import write_model

pytestmark = pytest.mark.timeout(60)  # real processes, on whatever machine

ROOT = CONF_DIR.parent
FAKE = ("-m", "tests.fake_system", '{"misdeed": "hang"}')


@pytest.fixture(autouse=True)
def locks(tmp_path, monkeypatch):
    """One harness at a time in this test, whatever else runs on this host meanwhile."""
    folder = tmp_path / "locks"
    folder.mkdir()
    folder.chmod(0o1777)
    monkeypatch.setattr("testbed.host.hostlock._FOLDERS", (folder,))
    return folder


@pytest.fixture
def fakes(monkeypatch):
    """Every system is the fake one; what it does is set by its name."""

    def set_up(**behaviour):
        for name in launching.PROGRAMS:
            words = ("-m", "tests.fake_system", json.dumps(behaviour.get(name, {})))
            monkeypatch.setitem(launching.PROGRAMS, name, words)

    set_up()
    return set_up


@pytest.fixture
def arguments(tmp_path):
    folder = write_model(tmp_path / "a model", tokenizer=True)
    return [
        "model=folder", f"model.path={folder}", f"weights.dir={tmp_path}/weights", "devices=2",
        f"results_dir={tmp_path}/runs", "repeats=1", "workload.new_tokens=4",
    ]  # fmt: skip


def row(text, system):
    table = text[text.index("TTFT") :].splitlines()
    return next(line.rstrip() for line in table if re.match(rf"{system} +\w+ ", line))


@pytest.mark.usefixtures("fakes")
def test_run_prints_plan_table_and_where_records_lie(tmp_path, arguments, capsys):
    assert run.main([*arguments, "workload.prompt=hello world, [hello]"]) == 0
    out, err = capsys.readouterr()
    for word in ("model ", "weights ", "tpi ", "check ", "runs ", "time ", "needs", "2 devices"):
        assert word in out
    assert "equal" in row(out, "tpi")
    assert "ok" in row(out, "transformers")
    folders = re.findall(r"record: (.*)", out)
    assert len(folders) == 2
    record = RunStore(tmp_path / "runs").read(folders[0].rpartition("/")[2])
    assert record.config.prompt_ids == (1, 2, 0, 0, 1, 0)  # commas and brackets are unknown
    assert "tpi, repeat 1: ok" in err


def test_run_wrong_tokens_end_with_status_1(fakes, arguments, capsys):
    fakes(tpi={"tokens": [3, 3, 3, 3]})
    assert run.main(arguments) == 1
    assert "wrong_output" in row(capsys.readouterr().out, "tpi")


def test_run_prompt_file(fakes, tmp_path, arguments):
    (tmp_path / "prompt.txt").write_text("world")
    assert run.main([*arguments, f"workload.prompt_file={tmp_path}/prompt.txt"]) == 0


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["workload.prompt=hello"], ["model=tiny has no tokenizer", "workload.prompt_tokens=N"]),
        (["workload.prompt_tokens=3000"], ["3032 positions", "2048"]),
        (["systems=[tpi]", "shares=[1,2,3]"], ["shares: got 3 numbers, expected devices=4"]),
        (["memory_budget=1MiB"], ["memory_budget", "least"]),
        (["weights=folder"], ["weights=folder", "no folder"]),
        (["max_minutes=0.01"], ["max_minutes: got 0.01"]),
        (
            ["systems=[tpi,pipeline,transformers-tp]", "devices=9"],
            ["pipeline cannot run: ", "9 devices", "8 layers", "; transformers-tp cannot run: "],
        ),
        (["device.memory=4GiB"], ["device.memory", "cannot be limited"]),
        (["weights.dir=/proc/nowhere"], ["weights.dir"]),
        (["results_dir=/proc/nowhere"], ["results_dir"]),
    ],
    ids=lambda v: " ".join(v),
)
def test_mistakes_end_with_status_2_and_one_line(tmp_path, monkeypatch, capsys, extra, words):
    monkeypatch.chdir(tmp_path)
    assert run.main(["model=tiny", *extra]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    for word in words:
        assert word in err
    assert not list(tmp_path.glob("**/*.safetensors"))


def test_missing_package_is_refused_by_name_and_a_row_through_all(
    fakes, arguments, monkeypatch, capsys
):
    monkeypatch.setattr(
        "harness.plan.availability.find_spec", lambda name: name if name == "torch" else None
    )
    assert run.main([*arguments, "systems=[tpi,transformers]"]) == 2
    assert "transformers cannot run: the package" in capsys.readouterr().err
    monkeypatch.setattr("harness.plan.plan._plan_check", lambda *_: ("none", "not here"))
    assert run.main([*arguments, "systems=all"]) == 0
    out = capsys.readouterr().out
    assert "unavailable" in row(out, "transformers")
    assert "the package transformers is not installed" in out


def test_sweep_has_one_table_one_csv_and_one_plot(fakes, arguments, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments += [f"sweep_dir={tmp_path}/a, sweep", "systems=[tpi,transformers]"]
    assert run.main(["-m", *arguments, "window=1,2"]) == 0
    out = capsys.readouterr().out
    header, *rows = out.splitlines()[1:6]
    assert header.split()[:3] == ["window", "system", "dev"]
    assert [row.split()[:2] for row in rows[:4]] == [
        ["1", "tpi"], ["1", "transformers"], ["2", "tpi"], ["2", "transformers"],
    ]  # fmt: skip
    assert f"sweep: {tmp_path}/a, sweep/sweep.csv" in out
    kept = sorted(path.name for path in (tmp_path / "a, sweep").iterdir())
    assert kept == ["multirun.yaml", "sweep.csv", "sweep.png"]
    table = list(csv.DictReader((tmp_path / "a, sweep" / "sweep.csv").read_text().splitlines()))
    assert [(line["window"], line["system"]) for line in table][-1] == ("2", "transformers")
    assert len({line["run_id"] for line in table}) == 3  # no window in Transformers
    assert {path.name for path in tmp_path.iterdir()} <= {
        "a model", "a, sweep", "locks", "runs", "weights",
    }  # fmt: skip


def test_sweep_is_refused_as_a_whole_before_anything_is_measured(fakes, arguments, capsys):
    assert run.main(["-m", *arguments, "systems=[tpi]", "window=1,0"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "window" in err
    assert run.main(["-m", *arguments, "systems=[tpi]", "workload.prompt_tokens=4,900000"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert "900" in err


def test_sweep_that_is_ended_in_the_middle_shows_what_was_measured(
    fakes, arguments, capsys, tmp_path, monkeypatch
):
    fail_at(monkeypatch, 2, KeyboardInterrupt())
    arguments += [f"sweep_dir={tmp_path}/sweep", "systems=[transformers]", "repeats=1"]
    assert run.main(["-m", *arguments, "workload.new_tokens=4,5,6"]) == 130
    out, err = capsys.readouterr()
    assert [line.split()[:3] for line in out.splitlines()[2:4]] == [
        ["4", "transformers", "ok"], ["5", "transformers", "interrupted"],
    ]  # fmt: skip
    assert err.endswith("goes on where it stopped\n")


def test_sweep_whose_jobs_fail_ends_with_their_status(fakes, arguments, tmp_path):
    fakes(tpi={"tokens": [3, 3, 3, 3]})
    assert run.main(["-m", *arguments, f"sweep_dir={tmp_path}/sweep", "window=1,2"]) == 1


def fail_at(monkeypatch, count, error):
    """Let the repeat of that number, counted from 1, end in an error of the harness."""
    calls = []

    def wrapper(*args):
        calls.append(args)
        if len(calls) == count:
            raise error
        return run_repeat(*args)

    monkeypatch.setattr("harness.run.experiment.run_repeat", wrapper)


@pytest.mark.usefixtures("fakes")
@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (DeviceError("device 1: no room"), 15, "run.py: device 1: no room\n"),
        (OSError(28, "No space left", "/x"), 15, "run.py: [Errno 28] No space left: '/x'\n"),
        (KeyboardInterrupt(), 130, "goes on where it stopped\n"),
    ],
    ids=lambda v: type(v).__name__,
)
def test_error_in_the_middle_shows_what_was_measured(
    arguments, monkeypatch, capsys, error, status, words
):
    monkeypatch.setattr(
        "harness.plan.availability.find_spec",
        lambda name: None if name in ("accelerate", "llama_cpp", "gguf") else name,
    )
    monkeypatch.setattr("harness.plan.plan._plan_check", lambda *_: ("none", "not here"))
    fail_at(monkeypatch, 2, error)
    assert run.main([*arguments, "systems=all"]) == status
    out, err = capsys.readouterr()
    assert row(out, "transformers").split()[1] == "ok"  # the reference comes first
    assert "interrupted" in row(out, "tpi")
    assert "unavailable" in row(out, "accelerate")
    assert err.endswith(words)


@pytest.mark.slow
def test_output_that_cannot_be_written_ends_in_one_line():
    argv = [sys.executable, "run.py", "--help"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(argv, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 15
    assert done.stderr == b"run.py: [Errno 28] No space left on device\n"


@pytest.mark.slow
def test_reader_that_is_gone_ends_it_quietly():
    read_fd, write_fd = os.pipe()
    os.close(read_fd)
    argv = [sys.executable, "run.py", "--help"]
    done = subprocess.run(argv, cwd=ROOT, stdout=write_fd, stderr=subprocess.PIPE, check=False)
    os.close(write_fd)
    assert (done.returncode, done.stderr) == (141, b"")


@contextmanager
def run_waits(arguments, program, stderr=subprocess.PIPE):
    """`run.py` in a process of its own, at the first repeat of tpi, which is `program`."""
    locks = next(Path(a.partition("=")[2]) for a in arguments if a.startswith("results_dir"))
    code = (
        "import sys, signal, run, pathlib\n"
        "from harness.run import launch as launching\n"
        "from testbed.host import hostlock\n"
        f"hostlock._FOLDERS = (pathlib.Path({str(locks.parent / 'locks')!r}),)\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
        f"launching.PROGRAMS['tpi'] = {program!r}\n"
        f"sys.exit(run.main({[*arguments, 'systems=[tpi]']!r}))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=stderr
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for_repeat(process):
    """Until the program of the first repeat is there, a child of the harness."""
    read = ""
    for line in process.stderr:
        read += line
        if line.startswith("tpi, repeat 1"):
            return wait_for_child(process)
    raise AssertionError(read)


def wait_for_child(process):
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        found = subprocess.run(
            ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False
        )
        if found.stdout:
            return [int(word) for word in found.stdout.split()]
        select.select([], [], [], 0.02)
    raise TimeoutError


def assert_gone(pids):
    for pid in pids:
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        assert select.select([handle], [], [], 5)[0], f"process {pid} lives"
        os.close(handle)


@pytest.mark.slow
def test_two_signals_for_one_wish_end_politely(arguments):
    with run_waits(arguments, FAKE) as process:
        children = wait_for_repeat(process)
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=15)
    assert process.returncode == 130, err
    assert "interrupted" in row(out, "tpi")
    assert_gone(children)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_flood_of_signals_does_not_nest(number):
    """What cleans up hears of one signal, however many come."""
    code = (
        "import signal\n"
        "from harness.run.signals import POLITE, GracefulShutdown\n"
        "for number in POLITE:\n"
        "    signal.signal(number, signal.SIG_DFL)\n"  # ignored in a background job, with nohup
        "with GracefulShutdown():\n"
        "    for _ in range(2):\n"
        "        try:\n"
        "            print('ready', flush=True)\n"
        "            while True:\n"
        "                pass\n"
        "        except KeyboardInterrupt:\n"
        "            pass\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        start_s = time.monotonic()
        while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            os.kill(process.pid, number)
            if time.monotonic() > start_s + 15:
                process.kill()
        _, err = process.communicate(timeout=15)
    assert (process.returncode, err) == (130, b"")


@pytest.mark.slow
def test_terminal_that_is_closed_ends_everything(arguments, tmp_path):
    ours, theirs = pty.openpty()
    with run_waits(arguments, FAKE, stderr=theirs) as process:
        os.close(theirs)
        children = wait_for_child(process)
        os.close(ours)
        process.send_signal(signal.SIGHUP)
        out, _ = process.communicate(timeout=15)
    assert process.returncode == 130
    assert "interrupted" in row(out, "tpi")
    assert_gone(children)
    (record,) = RunStore(tmp_path / "runs").scan()[0]
    assert record.status == "interrupted"


def test_nothing_of_the_signals_is_left_behind(fakes, arguments):
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    assert run.main(arguments) == 0
    after = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    assert before == after
    for thread in threading.enumerate():
        if thread.name == "signals":
            thread.join(timeout=5)
            assert not thread.is_alive()


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_real_systems_give_equal_tokens(tmp_path, capsys):
    folders = [f"weights.dir={tmp_path}/weights", f"results_dir={tmp_path}/runs"]
    more = ["repeats=1", "workload.new_tokens=6", "devices=2", "systems=[tpi,transformers]"]
    assert run.main(["model=tiny", *folders, *more]) == 0
    out = capsys.readouterr().out
    assert row(out, "tpi").endswith("equal")
    assert row(out, "transformers").endswith("equal")
