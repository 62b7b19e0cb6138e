"""Ctrl-C, SIGTERM and SIGHUP: the first one ends a run in order, another one ends it at once.

The first raises `KeyboardInterrupt` in the main thread, once, and everything is taken down in
order. Another one kills all our child processes, so that nothing is left to wait for, and half a
second later this process ends in any case; containers end with our lease. A thread reads signals
from a pipe, because the main thread may be in a call that does not return.
"""

import contextlib
import errno
import operator
import os
import signal
import sys
import termios
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Self

from testbed.host.procfs import PROC
from tpi.errors import EXIT_INTERRUPTED

POLITE = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Closing a terminal, or a launcher that forwards a signal, sends two signals for one request.
_SAME_REQUEST_S = 0.25
# From another signal to the end of the process; a user should not wait for a second.
_GRACE_S = 0.6
_STDERR = 2
# The handler of later signals, which must not interrupt the handler of another: a flood would nest
# them until the stack is full. It is a C function, so it ends before the next signal is handled.
_NOTHING = operator.is_


class GracefulShutdown:
    """While its `with` block lasts, signals end the block; see the module."""

    def __init__(self) -> None:
        self.seen = False
        self._over = threading.Event()
        self._old: dict[signal.Signals, object] = {}

    def __enter__(self) -> Self:
        self._read_fd, self._write_fd = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._write_fd, False)
        threading.Thread(target=self._watch, name="signals", daemon=True).start()
        self._old_fd = signal.set_wakeup_fd(self._write_fd, warn_on_full_buffer=False)
        for number in POLITE:
            # Ignored from the start (nohup, a background job of a script): stays so.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._old[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._over.set()
        if self.seen:
            ignore_signals()  # this process ends now; more signals would only garble its output
            end_children()  # an interrupted clean-up may have left some
        else:
            for number, handler in self._old.items():
                signal.signal(number, handler)  # type: ignore[arg-type]  # what getsignal gave
        signal.set_wakeup_fd(self._old_fd)
        os.close(self._write_fd)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self.seen:
            return
        self.seen = True
        for each in self._old:
            signal.signal(each, _NOTHING)
        if number == signal.SIGHUP:
            leave_dead_terminal()  # before the last lines are written
        if not self._over.is_set():
            raise KeyboardInterrupt

    def _watch(self) -> None:
        first_s: float | None = None
        with open(self._read_fd, "rb", buffering=0) as pipe:  # noqa: PTH123 - no path, a pipe
            while byte := pipe.read(1):
                if byte[0] not in POLITE:  # somebody else's handler
                    continue
                if byte[0] == signal.SIGHUP:
                    leave_dead_terminal()
                first_s = time.monotonic() if first_s is None else first_s
                if time.monotonic() - first_s > _SAME_REQUEST_S:
                    self._end_now()

    def _end_now(self) -> None:
        deadline = time.monotonic() + _GRACE_S
        while time.monotonic() < deadline:
            end_children()
            if self._over.wait(0.05):
                return
        if os.isatty(_STDERR):  # the live view hides the cursor
            os.write(_STDERR, b"\x1b[?25h\n")
        os._exit(EXIT_INTERRUPTED)


def ignore_signals() -> None:
    """Ignore signals from now on: only the interpreter's own end is left."""
    sys.unraisablehook = _report_unraisable
    for number in POLITE:
        signal.signal(number, signal.SIG_IGN)


def _report_unraisable(unraisable: "sys.UnraisableHookArgs") -> None:
    """Report everything but CPython's error for a signal that comes while we ignore it."""
    exc = unraisable.exc_value
    if not (isinstance(exc, OSError) and "ignored due to race condition" in str(exc)):
        sys.__unraisablehook__(unraisable)


def end_children(proc: Path = PROC) -> None:
    """Kill every child process of ours, and its group if it leads one."""
    for task in (proc / "self" / "task").iterdir():
        with contextlib.suppress(OSError):
            for word in (task / "children").read_text().split():
                _kill(int(word))


def leave_dead_terminal() -> None:
    """Discard output if its terminal is gone: writing there would fail."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            fd = stream.fileno()
            try:
                termios.tcgetattr(fd)
            except termios.error as exc:
                if exc.args[0] == errno.EIO:
                    write_nowhere(fd)


def write_nowhere(fd: int) -> None:
    """Replace a descriptor whose reader is gone by /dev/null."""
    nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(nowhere, fd)
    os.close(nowhere)


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        # A child that we have not reaped keeps its number, so no other process is hit.
        if os.getpgid(pid) == pid:
            os.killpg(pid, signal.SIGKILL)
        else:
            os.kill(pid, signal.SIGKILL)
