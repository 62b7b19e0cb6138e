"""Two harnesses on one host: one is refused, or both know of each other; the dead hold nothing."""

import os
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from testbed.base import DeviceError
from testbed.host.hostlock import host_lock
from tests.testbed.programs import is_gone

OTHER = """
import sys
from pathlib import Path
from testbed.host.hostlock import host_lock
with host_lock(allow_concurrent=sys.argv[2] == "True", folder=Path(sys.argv[1])) as contention:
    print(contention.seen(), flush=True)
    sys.stdin.read()
    print(contention.seen(), flush=True)
"""


@contextmanager
def other_harness(folder, *, allow_concurrent):
    """Another process that holds the lock; yields it once it does."""
    argv = [sys.executable, "-c", OTHER, str(folder), str(allow_concurrent)]
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            assert process.stdout is not None
            process.first = process.stdout.readline().strip()  # type: ignore[attr-defined]
            yield process
        finally:
            process.kill()


def test_alone_there_is_no_contention_and_nothing_stays_locked(tmp_path):
    for allow in (False, True, False):
        with host_lock(allow_concurrent=allow, folder=tmp_path) as contention:
            assert not contention.seen()
            assert not contention.seen()


@pytest.mark.parametrize("allow_concurrent", [False, True])
def test_second_is_refused_with_the_holder_named(tmp_path, allow_concurrent):
    with other_harness(tmp_path, allow_concurrent=allow_concurrent) as other:
        with (
            pytest.raises(DeviceError) as caught,
            host_lock(allow_concurrent=False, folder=tmp_path),
        ):
            pass
        message = str(caught.value)
        assert f"process {other.pid})" in message
        assert "wait for its end" in message
        assert "allow_concurrent=true" in message
        assert "\n" not in message
        # One who was refused has disturbed nobody.
        assert other.communicate(timeout=10)[0] == "False\n"


def test_killed_holder_holds_nothing(tmp_path):
    with other_harness(tmp_path, allow_concurrent=False) as other:
        other.kill()
        assert is_gone(other.pid)
        with host_lock(allow_concurrent=False, folder=tmp_path) as contention:
            assert not contention.seen()


@pytest.mark.parametrize("first_allows", [False, True])
def test_both_know_when_they_run_side_by_side(tmp_path, first_allows):
    with other_harness(tmp_path, allow_concurrent=first_allows) as other:
        assert other.first == "False"
        with host_lock(allow_concurrent=True, folder=tmp_path) as contention:
            assert contention.seen()
            assert other.communicate(timeout=10)[0] == "True\n"
            assert contention.seen()  # it was there for a part of the time
            assert not contention.seen()


def test_short_visit_between_two_looks_is_seen_once(tmp_path):
    with host_lock(allow_concurrent=False, folder=tmp_path) as contention:
        with other_harness(tmp_path, allow_concurrent=True) as other:
            assert other.first == "True"
        assert contention.seen()
        assert not contention.seen()


def test_long_visit_is_seen_at_every_look(tmp_path):
    with (
        host_lock(allow_concurrent=False, folder=tmp_path) as contention,
        other_harness(tmp_path, allow_concurrent=True),
    ):
        assert contention.seen()
        assert contention.seen()


def test_without_numbers_in_the_list_one_who_came_counts_as_staying(tmp_path, monkeypatch):
    locks = tmp_path / "locks"
    locks.write_text(
        "1: POSIX  ADVISORY  READ 5 00:1:7 0 EOF\n1: -> FLOCK  ADVISORY  READ 5 8:1:7 0 EOF\n"
    )
    monkeypatch.setattr("testbed.host.hostlock._LOCKS", locks)
    with host_lock(allow_concurrent=False, folder=tmp_path) as contention:
        assert not contention.seen()
        with other_harness(tmp_path, allow_concurrent=True):
            pass
        assert contention.seen()
        assert contention.seen()


def test_files_are_for_all_users_whatever_our_umask(tmp_path):
    old = os.umask(0o077)
    try:
        with host_lock(allow_concurrent=False, folder=tmp_path):
            pass
    finally:
        os.umask(old)
    modes = {p.name: p.stat().st_mode & 0o777 for p in tmp_path.iterdir()}
    assert modes == {"tpi-lab.lock": 0o644, "tpi-lab.present": 0o666}


@pytest.mark.parametrize("name", ["tpi-lab.lock", "tpi-lab.present"])
@pytest.mark.parametrize("trap", ["symlink", "hardlink", "fifo", "folder"])
def test_traps_in_a_shared_folder_are_refused_and_nothing_is_written(tmp_path, name, trap):
    victim, shared = tmp_path / "victim", tmp_path / "shared"
    victim.write_text("precious")
    shared.mkdir()
    make = {
        "symlink": lambda p: p.symlink_to(victim),
        "hardlink": lambda p: p.hardlink_to(victim),
        "fifo": os.mkfifo,
        "folder": lambda p: p.mkdir(),
    }
    make[trap](shared / name)
    with pytest.raises(DeviceError, match=name), host_lock(allow_concurrent=False, folder=shared):
        pass
    assert victim.read_text() == "precious"


def test_folder_that_is_not_there_is_one_line(tmp_path):
    with (
        pytest.raises(DeviceError, match=r"host lock .*: cannot be opened: No such file"),
        host_lock(allow_concurrent=False, folder=tmp_path / "none"),
    ):
        pass


def test_folder_of_all_users_is_the_same_for_all(tmp_path, monkeypatch):
    private, shared = tmp_path / "private", tmp_path / "shared"
    private.mkdir(0o755)
    shared.mkdir()
    shared.chmod(0o1777)
    monkeypatch.setattr("testbed.host.hostlock._FOLDERS", (tmp_path / "none", private, shared))
    with host_lock(allow_concurrent=False):
        assert (shared / "tpi-lab.lock").exists()
    monkeypatch.setattr("testbed.host.hostlock._FOLDERS", (private,))
    with (
        pytest.raises(DeviceError, match=r"expected .*private with mode 1777"),
        ExitStack() as stack,
    ):
        stack.enter_context(host_lock(allow_concurrent=False))


def test_no_descriptor_is_left_open(tmp_path):
    before = len(list(Path("/proc/self/fd").iterdir()))
    with host_lock(allow_concurrent=True, folder=tmp_path):
        pass
    assert len(list(Path("/proc/self/fd").iterdir())) == before
