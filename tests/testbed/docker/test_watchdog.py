"""Somebody stands ready to clear up after a harness, and is gone when it is."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict

import docker
import pytest

from testbed.base import DeviceError
from testbed.docker import watchdog as module
from testbed.docker.watchdog import watchdog
from testbed.host.label import RunLabel, start_ticks

# A harness that makes a container and is killed before it starts it.
HARNESS = """
import docker, os, sys
from testbed.docker.watchdog import watchdog
from testbed.host.label import RunLabel
client = docker.APIClient(base_url="unix:///var/run/docker.sock", version="auto")
label = RunLabel.mine("tpi-watchdog")
with watchdog(label):
    made = client.create_container(sys.argv[1], ["cat"], labels=label.labels)
    print(made["Id"], flush=True)
    os.kill(os.getpid(), 9)
"""


def watchdogs(label):
    """Numbers of the watchdogs of a label."""
    return [
        int(word)
        for word in subprocess.run(
            ["pgrep", "-f", f"testbed.docker.watchdog .*{label.run_id}"],
            capture_output=True, text=True, check=False,
        ).stdout.split()
    ]  # fmt: skip


def test_it_is_no_child_and_goes_at_the_end(tmp_path):
    label = RunLabel.mine(f"run-{tmp_path.name}")
    with watchdog(label):
        children = subprocess.run(
            ["pgrep", "-P", str(os.getpid()), "-f", label.run_id], capture_output=True, check=False
        )
        # The one that started it ends at once and may still be there as a zombie.
        assert len(children.stdout.split()) <= 1
    assert not watchdogs(label)


def test_failure_has_it_look_after_us(tmp_path, monkeypatch):
    """It finds no daemon here; what counts is that it ends."""
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    label = RunLabel.mine(f"run-{tmp_path.name}")
    with pytest.raises(KeyboardInterrupt), watchdog(label):
        raise KeyboardInterrupt
    for pid in watchdogs(label):
        with_handle = os.pidfd_open(pid)
        assert select.select([with_handle], [], [], 5)[0]
        os.close(with_handle)


def test_it_cannot_be_started(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with (
        pytest.raises(DeviceError, match="watchdog: cannot be started"),
        watchdog(RunLabel.mine("run")),
    ):
        pass


def test_it_does_nothing_when_all_is_well(monkeypatch):
    label = RunLabel("run", socket.gethostname(), os.getpid(), start_ticks(os.getpid()) or 0)
    argv = [sys.executable, "-m", "testbed.docker.watchdog", json.dumps(asdict(label))]
    done = subprocess.run(
        argv, cwd=module._ROOT, input=b"done\n", capture_output=True, timeout=10, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.docker
@pytest.mark.timeout(60)
def test_container_that_was_never_started_goes_with_its_harness(test_image):
    done = subprocess.run(
        [sys.executable, "-c", HARNESS, test_image], cwd=module._ROOT, capture_output=True,
        text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    client = docker.APIClient(base_url="unix:///var/run/docker.sock", version="auto")
    deadline = time.monotonic() + 15
    try:
        while client.containers(all=True, filters={"id": done.stdout.strip()}):
            assert time.monotonic() < deadline
            select.select([], [], [], 0.1)
    finally:
        client.close()


@pytest.fixture
def test_image():
    from testbed.image import image_tag

    return image_tag()
