"""Whose a container is: the labels that every one carries, and whether its harness still lives.

A process number alone may have been given to another process since, so a label also holds when the
process started, in the kernel's ticks since boot. Another host's label is never called dead.
"""

import os
import socket
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Self

from testbed.host.procfs import PROC, read_stat

PREFIX = "org.tpi-lab."
_KEYS = tuple(f"{PREFIX}{name}" for name in ("run", "host", "pid", "start"))


@dataclass(frozen=True, slots=True)
class RunLabel:
    """The run that something was made for, and the harness process that made it.

    Attributes:
        start_ticks: When the harness started, in clock ticks since boot.
    """

    run_id: str
    host: str
    pid: int
    start_ticks: int

    @classmethod
    def mine(cls, run_id: str) -> Self:
        """The label of what this process makes for a run."""
        pid = os.getpid()
        return cls(run_id, socket.gethostname(), pid, start_ticks(pid) or 0)

    @classmethod
    def parse(cls, labels: Mapping[str, str]) -> Self | None:
        """Read a container's labels; None if they are not ours or not complete."""
        try:
            run_id, host, pid, start = (labels[key] for key in _KEYS)
            return cls(run_id, host, int(pid), int(start))
        except (KeyError, ValueError):
            return None

    @property
    def labels(self) -> dict[str, str]:
        """As Docker holds them."""
        return dict(zip(_KEYS, map(str, astuple(self)), strict=True))


def start_ticks(pid: int, proc: Path = PROC) -> int | None:
    """When a process started, in clock ticks since boot; None if it is gone or a zombie."""
    fields = read_stat(pid, proc)
    return None if fields is None or fields[0] in "ZX" else int(fields[19])


def is_alive(label: RunLabel, proc: Path = PROC) -> bool:
    """Whether the harness of a label may still run; another host's always may."""
    if label.host != socket.gethostname():
        return True
    return start_ticks(label.pid, proc) == label.start_ticks
