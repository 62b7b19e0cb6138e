"""Programs that behave and misbehave, and how tests speak to them on any device."""

import os
import select
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from testbed.base import Device
from tpi.program.process import Exit, Inbox

# Says that its handlers are in place, then waits for the end of its lease.
OBEDIENT = "import sys; print('up', flush=True); sys.stdin.read()"
STUBBORN = (
    "import signal, sys, time; signal.signal(15, signal.SIG_IGN); print('up'); time.sleep(60)"
)
PARENT = (
    "import subprocess, sys\n"
    "child = subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(60)'])\n"
    "print(child.pid); sys.stdin.read()"
)
HOLDS_50_MIB = (
    "import sys; x = b'x' * (50 << 20); print('up', flush=True); sys.stdin.read(3)\n"
    "del x; print('freed', flush=True); sys.stdin.read()"
)


def start(
    device: Device, inbox: Inbox, program: str, spec: Mapping[str, object] | None = None
) -> Any:
    """Start a Python program; Any, since tests also look at `pid` and `signal`."""
    return device.run([device.python, "-S", "-c", program], inbox, spec)


def read_line(inbox: Inbox) -> bytes:
    output = inbox.get(timeout=10)
    assert output.exit is None, output.exit
    return output.line


def read_to_exit(inbox: Inbox) -> tuple[list[bytes], Exit]:
    lines = []
    while (output := inbox.get(timeout=10)).exit is None:
        lines.append(output.line)
    return lines, output.exit


def is_gone(pid: int) -> bool:
    """Whether a process of the host ends, within some seconds: a kill takes a moment."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], 5)[0])
    finally:
        os.close(handle)


def host_pid(device: Any, pid: int) -> int:
    """The host's number of a process that told its own number."""
    if not hasattr(device, "cgroup"):
        return pid
    for candidate in device.cgroup.pids():
        for line in Path(f"/proc/{candidate}/status").read_text().splitlines():
            if line.startswith("NSpid:") and line.split()[-1] == str(pid):
                return int(candidate)
    raise AssertionError(f"no process {pid} in the container")
