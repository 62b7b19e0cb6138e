"""One program in a process group of its own: started, heard, ended and reaped.

Two threads serve it: one cuts its output into lines, one waits for its end, ends what is left of
its group and reaps it. Only a group whose leader was started here and is not yet reaped is ever
signalled, so that no number that was given to somebody else is hit.
"""

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tpi.program.events import MAX_LINE_BYTES
from tpi.program.process import Exit, Inbox, Process
from tpi.program.procfs import oom_kills

_LOG_TAIL_BYTES = 4096


class LocalProcess(Process):
    """A program in its own process group.

    The inbox gets its lines and its exit under the number `device`, `log` its standard error.

    Raises:
        OSError: It cannot be started.
    """

    def __init__(
        self,
        device: int,
        argv: Sequence[str],
        inbox: Inbox,
        log: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        super().__init__(device, inbox)
        self._lock = threading.RLock()  # a signal handler of ours may signal in turn
        self._reaped = False
        self._oom_kills = oom_kills()
        self.start_ns = time.monotonic_ns()
        # Held open until its end: a harness that is interrupted twice removes the folder before.
        with contextlib.ExitStack() as undo:
            self._log = undo.enter_context(log.open("w+b"))
            self._popen = subprocess.Popen(
                list(argv),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                env=env,
                cwd=cwd,
                start_new_session=True,
                bufsize=0,
            )
            undo.pop_all()
        self.pid = self._popen.pid  # also the id of its group
        self._serve(self._read, self._await_end)

    def send(self, line: str) -> None:
        """Write one line to its standard input; nothing happens if it has ended."""
        if self._popen.stdin is not None and not self._popen.stdin.closed:
            with contextlib.suppress(OSError):
                self._popen.stdin.write(line.encode() + b"\n")

    def release(self) -> None:
        """Close its standard input: its lease ends, and it should end by itself."""
        if self._popen.stdin is not None:
            with contextlib.suppress(OSError):
                self._popen.stdin.close()

    @property
    def running(self) -> bool:
        """Whether it was not yet reaped."""
        return not self._reaped

    def signal(self, number: int) -> None:
        """Send a signal to its process group; nothing happens once it was reaped."""
        with self._lock:
            if not self._reaped:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.pid, number)

    def _read(self) -> None:
        stdout = self._popen.stdout
        if stdout is None:
            return
        while data := os.read(stdout.fileno(), MAX_LINE_BYTES):
            self._lines.feed(data)
        self._lines.finish()
        stdout.close()

    def _await_end(self) -> None:
        # Without reaping: as long as the leader is a zombie, its group's number stays ours.
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        t_ns, stopped = time.monotonic_ns(), self._lines.stopping
        with self._lock:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
            code = self._popen.wait()
            self._reaped = True
        oom = code == -signal.SIGKILL and not stopped and oom_kills() > self._oom_kills
        # A descendant that left the group may hold the pipe open; its output is not waited for.
        self._drain(1.0)
        self._exit = Exit(code, stopped, oom, t_ns, self._log_tail())
        self._ended.set()
        self.release()
        self._lines.put_exit(self._exit)

    def _log_tail(self) -> str:
        # By position: where the program writes next is the same file description's offset.
        with self._log as log:
            size = os.fstat(log.fileno()).st_size
            tail = os.pread(log.fileno(), _LOG_TAIL_BYTES, max(0, size - _LOG_TAIL_BYTES))
        return tail.decode("utf-8", "replace")


def free_port() -> int:
    """A port of the loopback interface that is free now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
