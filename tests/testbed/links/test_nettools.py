"""How network tools are run, and namespaces that end with us."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from testbed.base import DeviceError
from testbed.links.nettools import HeldNamespace, entered, namespace_inode, namespace_of, run_tool

_FAILING = "import sys; sys.stderr.write('Error: no.\\nCommand failed -:2\\n'); sys.exit(1)"


def test_run_tool_gives_output_and_input():
    assert run_tool(["cat"], "a line\n") == "a line\n"


def test_run_tool_missing_program_names_its_package(monkeypatch):
    monkeypatch.setattr("testbed.links.nettools.tool_environment", lambda: {"PATH": "/nowhere"})
    with pytest.raises(DeviceError, match="ip: not found: apt-get install iproute2"):
        run_tool(["ip", "link"])


def test_run_tool_missing_program_in_a_namespace_is_seen_before_it_is_entered():
    with pytest.raises(DeviceError, match=r"^links: no-such-tool: not found$"):
        run_tool(["nsenter", "--net=/proc/self/ns/net", "--", "no-such-tool"])


def test_run_tool_failure_has_the_tools_words_and_the_line():
    with pytest.raises(DeviceError, match=r"Error: no\. in 'second'$"):
        run_tool([sys.executable, "-c", _FAILING], "first\nsecond\n")


def test_run_tool_failure_without_words_has_the_status():
    with pytest.raises(DeviceError, match=r"exit status 3$"):
        run_tool([sys.executable, "-c", "raise SystemExit(3)"])


def test_entered_is_undone_in_messages_only():
    assert entered("/proc/1/ns/net", ["ip", "link"]) == [
        "nsenter",
        "--net=/proc/1/ns/net",
        "--",
        "ip",
        "link",
    ]


def test_namespace_of_our_own_process_is_refused():
    with (
        pytest.raises(DeviceError, match="no network namespace of its own"),
        namespace_of(os.getpid()),
    ):
        pytest.fail("entered")


def test_namespace_of_a_process_that_is_gone_is_refused():
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    with pytest.raises(DeviceError, match=f"process {done.pid}"), namespace_of(done.pid):
        pytest.fail("entered")
    assert namespace_inode(done.pid) is None


def test_namespace_inode_of_our_own():
    assert namespace_inode(os.getpid()) == Path("/proc/self/ns/net").stat().st_ino


@pytest.mark.docker
def test_held_namespace_is_empty_and_ends_with_close():
    room = HeldNamespace()
    assert room.run(["ip", "-brief", "link"]).split()[0] == "lo"
    assert namespace_inode(room.pid) != namespace_inode(os.getpid())
    room.close()
    room.close()
    assert namespace_inode(room.pid) is None


@pytest.mark.docker
def test_namespace_of_stays_good_when_its_process_ends():
    with HeldNamespace() as room:
        room.run(["ip", "link", "add", "name", "mark", "type", "bridge"])
        with namespace_of(room.pid) as path:
            room.close()
            assert "mark" in run_tool(entered(path, ["ip", "-brief", "link"]))
