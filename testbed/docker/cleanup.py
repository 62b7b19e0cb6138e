"""Removes containers that a dead run of ours has left behind, and never anything else.

A container ends by itself when its harness does, so this finds only failures of that: a container
that was paused, or whose daemon was restarted meanwhile. A container is ours if it carries all
labels of a run of this host; it is left behind if that run's process is gone (`label.py`). The
kernel removes TAP devices with the process that holds them.
"""

from collections.abc import Callable, Mapping
from typing import Any

import docker
import docker.errors

from testbed.docker.daemon import daemon_errors
from testbed.host.label import PREFIX, RunLabel

_GONE, _BEING_REMOVED = 404, 409


def dead_containers(
    client: docker.APIClient, is_alive: Callable[[RunLabel], bool]
) -> list[tuple[str, str, RunLabel]]:
    """(name, id, label) of each container of ours whose run is gone."""
    with daemon_errors("docker: looking for containers of earlier runs"):
        found: list[Mapping[str, Any]] = client.containers(
            all=True, filters={"label": f"{PREFIX}run"}
        )
    return [
        ((each.get("Names") or [each["Id"][:12]])[0].lstrip("/"), each["Id"], label)
        for each in found
        if (label := RunLabel.parse(each.get("Labels") or {})) is not None and not is_alive(label)
    ]


def reap(client: docker.APIClient, *, host: str, is_alive: Callable[[RunLabel], bool]) -> list[str]:
    """Remove what dead runs of this host left; returns a line for each container that was found.

    `host` is this host's name in our labels; `is_alive` says whether the process of a label still
    runs, as `label.is_alive` does. A daemon that does not answer is a DeviceError.
    """
    dead = dead_containers(client, is_alive)
    return [_remove(client, *each) for each in dead if each[2].host == host]


def reap_mine(client: docker.APIClient, mine: RunLabel) -> list[str]:
    """Remove what this very process still has, of any run: it is about to end."""
    this = (mine.pid, mine.start_ticks)
    return reap(
        client,
        host=mine.host,
        is_alive=lambda label: (label.pid, label.start_ticks) != this,
    )


def _remove(client: docker.APIClient, name: str, container_id: str, label: RunLabel) -> str:
    what = f"container {name} of run {label.run_id}, left by process {label.pid}"
    try:
        client.remove_container(container_id, force=True, v=True)
    except docker.errors.APIError as exc:
        # One that has gone or goes by itself meanwhile is fine.
        if exc.status_code not in (_GONE, _BEING_REMOVED):
            reason = str(exc.explanation or exc).splitlines()[0]
            return f"{what}: could not be removed ({reason}); `docker rm -f {name}` removes it"
    return f"{what}: removed"
