"""The reaper takes what dead runs of this host left, and leaves everything else alone."""

import io
import os
import secrets
import socket
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from typing import Any, cast

import docker
import docker.errors
import pytest
import requests

from testbed.base import DeviceError
from testbed.docker.cleanup import reap, reap_mine
from testbed.host.label import RunLabel, is_alive

DEAD = RunLabel("tpi-1", "here", 10, 100)
LIVING = RunLabel("tpi-2", "here", 11, 100)
SAME_NUMBER = RunLabel("tpi-3", "here", 11, 99)
ELSEWHERE = RunLabel("tpi-4", "there", 10, 100)


class FakeClient:
    """A daemon with containers; keeps what it was told to remove, refuses with given statuses."""

    def __init__(
        self, labels: Sequence[dict[str, str] | None], refusals: dict[str, int] | None = None
    ):
        self.found = [
            {"Id": f"id{i}", "Names": [f"/name{i}"], "Labels": each}
            for i, each in enumerate(labels)
        ]
        self.refusals = refusals or {}
        self.asked: list[dict[str, Any]] = []
        self.removed: list[tuple[str, dict[str, Any]]] = []

    def containers(self, **options: Any) -> list[dict[str, Any]]:
        self.asked.append(options)
        return self.found

    def remove_container(self, name: str, **options: Any) -> None:
        self.removed.append((name, options))
        if name in self.refusals:
            response = requests.Response()
            response.status_code = self.refusals[name]
            raise docker.errors.APIError("no", response, "it\nhangs")


def reaped(client: FakeClient, host: str = "here") -> list[str]:
    return reap(cast(docker.APIClient, client), host=host, is_alive=lambda label: label == LIVING)


def test_only_what_dead_runs_of_this_host_left_is_removed():
    client = FakeClient([each.labels for each in (DEAD, LIVING, SAME_NUMBER, ELSEWHERE)])
    assert reaped(client) == [
        "container name0 of run tpi-1, left by process 10: removed",
        "container name2 of run tpi-3, left by process 11: removed",
    ]
    assert client.removed == [
        ("id0", {"force": True, "v": True}),
        ("id2", {"force": True, "v": True}),
    ]
    # Paused and ended ones too, and foreign ones are not even listed.
    assert client.asked == [{"all": True, "filters": {"label": "org.tpi-lab.run"}}]


@pytest.mark.parametrize(
    "labels",
    [
        None,
        {},
        {"org.testcontainers": "true"},
        {"org.tpi-lab.run": "tpi-1"},
        {k: v for k, v in DEAD.labels.items() if not k.endswith("host")},
        {k: v for k, v in DEAD.labels.items() if not k.endswith("start")},
        {**DEAD.labels, "org.tpi-lab.pid": "ten"},
        {**DEAD.labels, "org.tpi-lab.start": ""},
    ],
    ids=str,
)
def test_labels_that_are_not_whole_are_not_ours(labels):
    client = FakeClient([labels])
    assert reaped(client) == []
    assert client.removed == []


def test_one_that_goes_by_itself_is_gone_and_one_that_cannot_be_removed_is_named():
    labels = [DEAD.labels] * 4
    client = FakeClient(labels, {"id0": 404, "id1": 409, "id2": 500})
    lines = reaped(client)
    assert [line.rpartition(": ")[2] for line in (lines[0], lines[1], lines[3])] == ["removed"] * 3
    assert "could not be removed (it); `docker rm -f name2` removes it" in lines[2]
    assert len(client.removed) == 4


def test_own_ones_go_at_the_end_and_those_of_others_stay():
    mine = RunLabel("tpi-9", "here", 11, 100)
    client = FakeClient([each.labels for each in (DEAD, LIVING, SAME_NUMBER, mine)])
    lines = reap_mine(cast(docker.APIClient, client), mine)
    assert [name for name, _ in client.removed] == ["id1", "id3"]  # two runs of one process
    assert len(lines) == 2


def test_daemon_that_is_gone_is_one_line(monkeypatch):
    def refuse(**_options: Any) -> None:
        raise requests.ConnectionError("refused")

    client = FakeClient([])
    monkeypatch.setattr(client, "containers", refuse)
    with pytest.raises(DeviceError, match="does not answer") as caught:
        reaped(client)
    assert "\n" not in str(caught.value)


SEES_THE_HOST = [f"{path}:{path}:ro" for path in ("/usr", "/bin", "/lib", "/lib64")]
TEST_LABEL = "org.tpi-lab-tests"


@pytest.fixture
def client():
    client = docker.APIClient(base_url="unix:///var/run/docker.sock", version="auto")
    yield client
    client.close()


@pytest.fixture
def start_container(client):
    """Makes real containers, of an empty image into which the host's programs are mounted."""
    name = f"tpi-lab-test-{secrets.token_hex(4)}"
    empty = io.BytesIO()
    tarfile.open(fileobj=empty, mode="w").close()
    client.import_image(src=empty.getvalue(), repository=name)

    def start(labels):
        made = client.create_container(
            f"{name}:latest", ["/bin/sleep", "60"], labels={**labels, TEST_LABEL: name},
            network_disabled=True,
            host_config=client.create_host_config(binds=SEES_THE_HOST, init=True),
        )  # fmt: skip
        client.start(made["Id"])
        return made["Id"]

    yield start
    for container in client.containers(all=True, filters={"label": f"{TEST_LABEL}={name}"}):
        client.remove_container(container["Id"], force=True)
    client.remove_image(f"{name}:latest")


@pytest.mark.docker
@pytest.mark.timeout(60)
def test_real_leftovers_go_paused_or_not_and_foreign_ones_stay(client, start_container):
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    host = socket.gethostname()
    dead = RunLabel("tpi-dead", host, process.pid, 1)
    reused = RunLabel("tpi-reused", host, os.getpid(), 1)
    mine = RunLabel.mine("tpi-mine")
    left = [start_container(dead.labels), start_container(reused.labels)]
    client.pause(left[0])
    stay = [
        start_container({}),
        start_container({"org.tpi-lab.run": "not ours"}),
        start_container({**dead.labels, "org.tpi-lab.host": "elsewhere"}),
        start_container(mine.labels),
    ]
    lines = reap(client, host=host, is_alive=is_alive)
    assert sum("tpi-dead" in line and line.endswith(": removed") for line in lines) == 1
    assert sum("tpi-reused" in line and line.endswith(": removed") for line in lines) == 1
    running = {c["Id"] for c in client.containers(filters={"label": TEST_LABEL})}
    assert running == set(stay)
    assert len(reap_mine(client, mine)) == 1
    running = {c["Id"] for c in client.containers(filters={"label": TEST_LABEL})}
    assert running == set(stay[:3])
