"""Outlives the harness by a few seconds, and removes containers that no lease could end.

A container ends with its harness because the harness holds its input open. One that was made and
not yet started has no process to see that input end. So a process that is no child of the harness
waits on a pipe: if it closes without a word, the harness is gone, and its containers go.
"""

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from testbed.base import DeviceError
from testbed.host.label import RunLabel, is_alive

_ROOT = Path(__file__).resolve().parents[2]
_DONE = b"done\n"
# What a harness had asked for in its last moment, the daemon may do a little later.
_AFTERMATH_S, _LOOK_EVERY_S = 5.0, 0.5
_FAREWELL_S = 3.0


@contextlib.contextmanager
def watchdog(label: RunLabel) -> Iterator[None]:
    """While the body runs, a process stands by to remove what containers this one leaves."""
    argv = [sys.executable, "-m", "testbed.docker.watchdog", json.dumps(asdict(label))]
    pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL  # who reads our errors waits for no one
    try:
        process = subprocess.Popen(
            argv, cwd=_ROOT, stdin=pipe, stdout=pipe, stderr=nowhere, bufsize=0
        )
    except OSError as exc:
        raise DeviceError(f"watchdog: cannot be started: {exc}") from exc
    with process:
        try:
            yield
            if process.stdin is not None:
                with contextlib.suppress(OSError):
                    process.stdin.write(_DONE)
        finally:
            if process.stdin is not None and process.stdout is not None:
                process.stdin.close()
                select.select([process.stdout], [], [], _FAREWELL_S)


def main() -> int:
    """Wait for the end of standard input, then clear up unless all is well."""
    # No child of the harness: it ends all of those when a user is in a hurry.
    if os.fork():
        return 0
    os.setsid()
    label = RunLabel(**json.loads(sys.argv[1]))
    if sys.stdin.buffer.read() != _DONE:
        _clear_up(label)
    return 0


def _clear_up(label: RunLabel) -> None:
    from testbed.docker.cleanup import reap_mine
    from testbed.docker.daemon import Daemon  # only now: until then it shall be small

    deadline = time.monotonic() + _AFTERMATH_S
    with contextlib.suppress(DeviceError), contextlib.closing(Daemon()) as daemon:
        while True:
            reap_mine(daemon.client, label)
            if is_alive(label) or time.monotonic() > deadline:
                return
            time.sleep(_LOOK_EVERY_S)


if __name__ == "__main__":
    sys.exit(main())
