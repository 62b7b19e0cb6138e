"""What only plain processes do; what they share with other backends is in test_conformance.py."""

import json
import os
import shutil

import pytest

from testbed.local.local import LocalTestbed
from tests.testbed.programs import HOLDS_50_MIB, is_gone, read_line, start
from tpi.program.process import make_inbox


@pytest.fixture
def testbed(tmp_path):
    with LocalTestbed(tmp_path) as bed:
        yield bed


@pytest.fixture
def device(testbed):
    return testbed.up(1)[0]


@pytest.fixture
def inbox():
    return make_inbox()


def test_program_is_a_process_of_this_machine(testbed, device, inbox):
    process = start(device, inbox, "import os, sys; print(os.getpid()); sys.stdin.read()")
    assert int(read_line(inbox)) == process.pid
    testbed.down()
    assert is_gone(process.pid)


def test_memory_is_the_processes_own(device, inbox):
    start(device, inbox, HOLDS_50_MIB)
    read_line(inbox)
    meters = device.meter()
    assert meters.rss_hwm is not None
    assert meters.anon_peak is not None
    assert meters.anon_peak <= meters.rss_hwm
    assert (meters.cgroup_peak, meters.words) == (None, {"cgroup_peak": "not limited"})


def test_programs_get_threads_and_the_given_environment(tmp_path, inbox):
    program = "import json, os; print(json.dumps(dict(os.environ)))"
    with LocalTestbed(tmp_path, threads=3, env={"PATH": os.environ["PATH"], "A": "b"}) as bed:
        start(bed.up(1)[0], inbox, program)
        env = json.loads(read_line(inbox))
    assert (env["A"], env["HF_HUB_OFFLINE"], env["PYTHONUNBUFFERED"]) == ("b", "1", "1")
    assert {env[f"{k}_NUM_THREADS"] for k in ("OMP", "MKL", "OPENBLAS")} == {"3"}


def test_it_says_that_nothing_is_limited(testbed, device):
    assert "no CPU, memory, disk or link limit" in testbed.notes[0]
    assert device.facts()["limits"] == "none"
    assert device.address == "127.0.0.1"
    assert 0 < device.free_port() < 65536


def test_its_folder_may_be_gone_before_it_ends(tmp_path, device, inbox):
    program = "import signal, sys; sys.stderr.write('why'); print('here'); signal.pause()"
    process = start(device, inbox, program)
    read_line(inbox)
    shutil.rmtree(tmp_path / "device-0")
    ended = process.stop()
    assert ended.log_tail == "why"
