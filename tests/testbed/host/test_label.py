"""Labels say whose a container is, and are believed only when all of it fits."""

import os
import socket

from testbed.host.label import RunLabel, is_alive, start_ticks


def write_stat(proc, pid, state="S", start=4711, name="python (x) y"):
    (proc / str(pid)).mkdir(parents=True)
    fields = [state, "1", "7", "7", *["0"] * 15, str(start), "0"]
    (proc / str(pid) / "stat").write_text(f"{pid} ({name}) {' '.join(fields)}\n")


def test_labels_read_back():
    label = RunLabel("tpi-1", "host", 7, 99)
    assert RunLabel.parse(label.labels) == label
    assert set(label.labels) == {f"org.tpi-lab.{k}" for k in ("run", "host", "pid", "start")}


def test_foreign_or_broken_labels_are_nobodys():
    whole = RunLabel("tpi-1", "host", 7, 99).labels
    assert RunLabel.parse({"a": "b"}) is None
    assert RunLabel.parse({**whole, "org.tpi-lab.pid": "x"}) is None
    assert RunLabel.parse({k: v for k, v in whole.items() if not k.endswith("start")}) is None


def test_my_own_label_is_alive():
    label = RunLabel.mine("tpi-1")
    assert (label.pid, label.host) == (os.getpid(), socket.gethostname())
    assert is_alive(label)


def test_start_is_read_behind_a_name_with_brackets(tmp_path):
    write_stat(tmp_path, 7)
    assert start_ticks(7, tmp_path) == 4711


def test_process_of_the_same_number_is_another(tmp_path):
    write_stat(tmp_path, 7)
    here = socket.gethostname()
    assert is_alive(RunLabel("r", here, 7, 4711), tmp_path)
    assert not is_alive(RunLabel("r", here, 7, 4712), tmp_path)
    assert not is_alive(RunLabel("r", here, 8, 4711), tmp_path)


def test_zombie_is_dead_and_another_host_is_not_judged(tmp_path):
    write_stat(tmp_path, 7, state="Z")
    assert not is_alive(RunLabel("r", socket.gethostname(), 7, 4711), tmp_path)
    assert is_alive(RunLabel("r", "somewhere.else", 7, 4711), tmp_path)
