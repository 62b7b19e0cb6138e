"""One program in a container: started as an exec, read through the daemon, ended from the host.

Its output and log come in one stream, which a thread takes apart. Another thread waits for its end
on the host's own handle of the process, ends what is left of its session and asks Docker for the
status. Only the control group's counters decide whether memory ran out: an exit status of 137 says
only that it was killed, and the parent of a killed process may end with 0.
"""

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from testbed.base import DeviceError
from testbed.docker.container import Container
from testbed.docker.daemon import STDERR, STDOUT, FrameParser
from tpi.program.process import Exit, Inbox, Process

_READ_BYTES = 64 << 10
_LOG_TAIL_BYTES = 4096
_MAX_LOG_BYTES = 16 << 20
_POLL_S, _OVER_S = 0.003, 0.1
# Between the daemon's answer and the program lies runc: 0.05 s here, more on a loaded host.
_START_S = 30.0
# The longest wait, after the end, for what a descendant keeps open; Docker waits 2 s too.
_DRAIN_S = 3.0
_STATUS_S = 10.0
# The statuses of a program that runc could not start; the output says why.
_NOT_STARTED = (126, 127)


@dataclass(frozen=True, slots=True)
class MemoryCounters:
    """What a control group ran into so far; see `testbed.limits.cgroup.Cgroup`."""

    oom_kills: int
    limit_hits: int
    was_full: bool


class ExecProcess(Process):
    """A program in a container."""

    cannot_be_killed = DeviceError

    def __init__(
        self,
        device: int,
        argv: Sequence[str],
        inbox: Inbox,
        container: Container,
        work_dir: str,
        log: Path,
    ) -> None:
        """Start it in `work_dir` (inside); its standard error goes to `log`, out of its reach."""
        super().__init__(device, inbox)
        self._container = container
        self._sending = threading.Lock()
        try:
            self._counters = self._read_counters()
        except DeviceError as exc:
            raise self._not_started(argv[0], f"its container has ended ({exc})") from exc
        self._log = BoundedLog(log)
        self.start_ns = time.monotonic_ns()
        with contextlib.ExitStack() as undo:
            undo.callback(self._log.close)
            self._exec_id, self._stream = container.open_exec(argv, work_dir)
            undo.callback(self._stream.close)
            self.pid = self._await_pid(argv[0])
            undo.pop_all()
        self._handle = container.open_handle(self.pid) if self.pid else None
        self._serve(self._read, self._await_end)

    def send(self, line: str) -> None:
        """Write one line to its standard input; nothing happens if it has ended."""
        with self._sending, contextlib.suppress(OSError):
            self._stream.send(line.encode() + b"\n")

    def release(self) -> None:
        """Close its standard input: its lease ends, and it should end by itself."""
        with contextlib.suppress(OSError):
            self._stream.close_input()

    def signal(self, number: int) -> None:
        """Send a signal to it and its session; nothing happens once it ended."""
        if self.pid and not self._ended.is_set():
            self._container.signal(self.pid, number)

    def _kill(self) -> None:
        self._container.thaw()
        super()._kill()

    def _await_pid(self, program: str) -> int:
        """Its number on the host; 0 if it has ended already."""
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline:
            state = self._container.exec_state(self._exec_id)
            if state is None:
                raise self._not_started(program, "its container has ended")
            pid, code = state
            if not pid and code in _NOT_STARTED:
                raise self._not_started(program, self._complaint())
            if pid or code is not None:
                return pid
            time.sleep(_POLL_S)
        raise self._not_started(program, f"nothing happened for {_START_S:g} s")

    def _complaint(self) -> str:
        """What runc said in the program's place."""
        text = b""
        with contextlib.suppress(OSError):
            while data := self._stream.read(_READ_BYTES):
                text += b"".join(payload for _, payload in FrameParser().feed(data))
        lines = text.decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else "no reason given"

    def _not_started(self, program: str, why: str) -> DeviceError:
        return DeviceError(f"device {self._device}: cannot start {program}: {why}")

    def _read(self) -> None:
        parser = FrameParser()
        # A broken stream is the daemon's end; what that means is found out by the waiter.
        with contextlib.suppress(OSError, ValueError, DeviceError):
            while data := self._stream.read(_READ_BYTES):
                for stream, payload in parser.feed(data):
                    if stream == STDOUT:
                        self._lines.feed(payload)
                    elif stream == STDERR:
                        self._log.write(payload)
        self._lines.finish()

    def _await_end(self) -> None:
        self._await_process()
        t_ns, stopped = time.monotonic_ns(), self._lines.stopping
        if self.pid:
            self._container.signal(self.pid, signal.SIGKILL)
        self._drain(_DRAIN_S)
        code = self._status()
        oom, host_oom = self._judge_memory()
        self._log.close()
        self._exit = Exit(code, stopped, oom, t_ns, self._log.tail, host_oom)
        self._ended.set()
        self._stream.close()
        self._lines.put_exit(self._exit)

    def _await_process(self) -> None:
        if self._handle is not None:
            waiting = select.poll()
            waiting.register(self._handle, select.POLLIN)
            waiting.poll()
            os.close(self._handle)
            return
        # It ended before it could be held. What it left may still keep the stream open.
        while self._reader.is_alive() and not self._is_over():
            self._reader.join(timeout=_OVER_S)

    def _is_over(self) -> bool:
        try:
            state = self._container.exec_state(self._exec_id)
        except DeviceError:
            return True
        return state is None or state[1] is not None

    def _drain(self, timeout_s: float) -> None:
        """Read what the program wrote last; not what a descendant that left it may still write."""
        super()._drain(timeout_s)
        if self._reader.is_alive():
            with contextlib.suppress(OSError):
                self._stream.hang_up()
            self._reader.join(timeout=timeout_s)

    def _status(self) -> int:
        """Its exit status, or minus the number of the signal that killed it."""
        deadline = time.monotonic() + _STATUS_S
        try:
            while (state := self._container.exec_state(self._exec_id)) is not None:
                if state[1] is not None:
                    return exit_code(state[1])
                if time.monotonic() > deadline:
                    break
                time.sleep(_POLL_S)
        except DeviceError as exc:
            self._log.write(f"\n{exc}\n".encode())
        # The container went, or the daemon: the kernel killed whatever ran in it.
        return -signal.SIGKILL

    def _read_counters(self) -> MemoryCounters:
        cgroup = self._container.cgroup
        return MemoryCounters(cgroup.oom_kills, cgroup.limit_hits, cgroup.was_full)

    def _judge_memory(self) -> tuple[bool, bool]:
        try:
            return judge_memory(self._counters, self._read_counters())
        except DeviceError:  # the container has gone, and took them with it
            return False, False


class BoundedLog:
    """A file that stops growing at some size, and its last lines."""

    def __init__(self, path: Path, max_bytes: int = _MAX_LOG_BYTES) -> None:
        self._file = path.open("xb")
        self._left = max_bytes
        self._tail = b""

    @property
    def tail(self) -> str:
        """The last lines, whether or not they are in the file."""
        return self._tail.decode("utf-8", "replace")

    def write(self, data: bytes) -> None:
        """Take the next bytes; nothing happens once it is closed."""
        self._tail = (self._tail + data)[-_LOG_TAIL_BYTES:]
        if self._left <= 0 or self._file.closed:
            return
        self._file.write(data[: self._left])
        self._left -= len(data)
        if self._left <= 0:
            self._file.write(b"\n[the rest was not kept: the log had grown too large]\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file; the tail is kept. Twice is fine."""
        self._file.close()


def judge_memory(before: MemoryCounters, after: MemoryCounters) -> tuple[bool, bool]:
    """Whether the device ran out of memory, and whether the host did, between the two."""
    killed = after.oom_kills > before.oom_kills
    at_limit = after.limit_hits > before.limit_hits or after.was_full
    return killed and at_limit, killed and not at_limit


def exit_code(status: int) -> int:
    """Docker's exit status as Python's: 128 + n for a signal becomes -n."""
    number = status - 128
    return -number if number in set(signal.Signals) else status
