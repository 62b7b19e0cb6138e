"""Removes containers that a dead run of ours has left behind, and never anything else.

A container ends by itself when its harness does, so this finds only what went wrong there: one that
was paused, one whose daemon was restarted meanwhile. It is ours if it carries all labels of a run
of this host, and left behind if that run's process is gone: its number alone may have been given to
somebody else, so its start time counts too (`label.py`). TAP devices need no reaper: the kernel
removes them with the process that holds them. Read `reap` first.
"""

from collections.abc import Callable, Mapping
from typing import Any

import docker
import docker.errors

from testbed.docker.daemon import daemon_errors
from testbed.host.label import PREFIX, RunLabel

_GONE, _BEING_REMOVED = 404, 409


def reap(client: docker.APIClient, *, host: str, is_alive: Callable[[RunLabel], bool]) -> list[str]:
    """Remove what dead runs of this host left; returns a line for each container that was found.

    Args:
        client: Of this host's daemon.
        host: The name in our labels for this host.
        is_alive: Whether the process that a label names still runs; see `label.is_alive`.

    Raises:
        DeviceError: The daemon does not answer.
    """
    lines = []
    with daemon_errors("docker: looking for containers of earlier runs"):
        found = client.containers(all=True, filters={"label": f"{PREFIX}run"})
    for container in found:
        label = RunLabel.parse(container.get("Labels") or {})
        if label is not None and label.host == host and not is_alive(label):
            lines.append(_remove(client, container, label))
    return lines


def reap_mine(client: docker.APIClient, mine: RunLabel) -> list[str]:
    """Remove what this very process still has, of whatever run: it is about to end.

    Raises:
        DeviceError: The daemon does not answer.
    """
    this = (mine.pid, mine.start_ticks)
    return reap(
        client,
        host=mine.host,
        is_alive=lambda label: (label.pid, label.start_ticks) != this,
    )


def _remove(client: docker.APIClient, container: Mapping[str, Any], label: RunLabel) -> str:
    name = (container.get("Names") or [container["Id"][:12]])[0].lstrip("/")
    what = f"container {name} of run {label.run_id}, left by process {label.pid}"
    try:
        client.remove_container(container["Id"], force=True, v=True)
    except docker.errors.APIError as exc:
        # Gone or going by itself meanwhile is what was wanted.
        if exc.status_code not in (_GONE, _BEING_REMOVED):
            reason = str(exc.explanation or exc).splitlines()[0]
            return f"{what}: could not be removed ({reason}); `docker rm -f {name}` removes it"
    return f"{what}: removed"
