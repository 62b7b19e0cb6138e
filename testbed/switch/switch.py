"""The switch in Python: TAP devices, standard input and a timer in one loop around the model.

For hosts without a C compiler: slower and later than `switch.c`, and the same otherwise.
"""

import ctypes
import fcntl
import gc
import json
import os
import select
import socket
import struct
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from testbed.base import DeviceError
from testbed.switch.model import PortSpec, Switch
from testbed.switch.protocol import CommandLines, error_line, obey, parse_arguments
from tpi.errors import ConfigError

_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI, _IFF_TUN_EXCL = 0x0002, 0x1000, 0x8000
_SIOCSIFHWADDR, _SIOCSIFTXQLEN = 0x8924, 0x8943
_ARPHRD_ETHER = 1
_PR_SET_TIMERSLACK = 29
_MCL_CURRENT = 1
_SCHED_PRIORITY = 50
_TX_QUEUE_PACKETS = 10_000
_MAX_FRAME_BYTES = 65_550
_READ_BATCH = 64
_WRITE_BATCH = 16
_CLOCK = time.monotonic_ns
_STDIN, _STDOUT = 0, 1


def say(line: str) -> None:
    """Write one line to standard output, at once."""
    data = line.encode() + b"\n"
    while data:
        data = data[os.write(_STDOUT, data) :]


def open_tap(spec: PortSpec, index: int) -> int:
    """Make the TAP device of a port; it exists as long as the descriptor is open."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    name = spec.name.encode()
    flags = _IFF_TAP | _IFF_NO_PI | _IFF_TUN_EXCL
    fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name, flags))
    address = bytes((2, 0, 0, 0, *(index + 1).to_bytes(2, "big")))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SIOCSIFTXQLEN, struct.pack("16si20x", name, _TX_QUEUE_PACKETS))
        fcntl.ioctl(control, _SIOCSIFHWADDR, struct.pack("16sH6s16x", name, _ARPHRD_ETHER, address))
    return fd


def real_time() -> bool:
    """Ask for what keeps lateness small; whether the real-time scheduler was granted."""
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
    libc.mlockall(_MCL_CURRENT)
    gc.disable()
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(_SCHED_PRIORITY))
    except OSError:
        return False
    return True


class Taps:
    """The devices' descriptors, what waits for them, and standard input."""

    def __init__(self, fds: list[int]) -> None:
        self._fds: list[int | None] = list(fds)
        self._index = {fd: index for index, fd in enumerate(fds)}
        self._epoll = select.epoll()
        for fd in (*fds, _STDIN):
            self._epoll.register(fd, select.EPOLLIN)

    def wait(self, due_ns: int | None) -> list[int]:
        """The descriptors that have something to read, at the latest at `due_ns` none."""
        wait_s = None if due_ns is None else max(0.0, (due_ns - _CLOCK()) / 1e9)
        # epoll itself would round the time up to whole milliseconds.
        ready, _, _ = select.select([self._epoll], [], [], wait_s)
        return [fd for fd, _ in self._epoll.poll(0)] if ready else []

    def read(self, fd: int, take: Callable[[int, bytes, int], None]) -> None:
        """Give `take` what a device sent, with its port and the time."""
        index = self._index[fd]
        for _ in range(_READ_BATCH):
            try:
                frame = os.read(fd, _MAX_FRAME_BYTES)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:  # its namespace is gone; the port stays, without a device
                os.close(fd)
                self._fds[index] = None
                return
            take(index, frame, _CLOCK())

    def write(self, index: int, frame: bytes) -> bool:
        """Whether the device took it; one that is down or gone does not."""
        fd = self._fds[index]
        with suppress(OSError):
            return fd is not None and os.write(fd, frame) == len(frame)
        return False


def deliver(switch: Switch, taps: Taps) -> int | None:
    """Give devices what is due, the earliest first; when the next frame is due."""
    for _ in range(_WRITE_BATCH):
        now_ns = _CLOCK()
        first = switch.due(now_ns)
        if first is None or first[0] > now_ns:
            return None if first is None else first[0]
        index = first[1]
        switch.deliver(index, now_ns, partial(taps.write, index))
    return _CLOCK()


def forward(switch: Switch, taps: Taps) -> None:
    """Until the end of standard input."""
    commands = CommandLines()
    while True:
        for fd in taps.wait(deliver(switch, taps)):
            if fd != _STDIN:
                taps.read(fd, switch.receive)
                continue
            chunk = os.read(_STDIN, 4096)
            for command in commands.feed(chunk):
                say(obey(switch, command))
            if not chunk:
                return


def _open(specs: list[PortSpec]) -> Taps:
    fds = []
    for index, spec in enumerate(specs):
        try:
            fds.append(open_tap(spec, index))
        except OSError as exc:
            raise DeviceError(f"TAP device {spec.name}: {exc.strerror}") from exc
    try:
        return Taps(fds)
    except OSError as exc:
        raise ConfigError("standard input must be a pipe: its end ends the switch") from exc


def main(argv: list[str]) -> int:
    """Run until the end of standard input; the exit status."""
    try:
        specs, seed = parse_arguments(argv)
        taps = _open(specs)
    except (ConfigError, DeviceError) as exc:
        say(error_line(str(exc)))
        return 2 if isinstance(exc, ConfigError) else 1
    say(json.dumps({"event": "ready", "backend": "python", "fifo": real_time()}))
    forward(Switch(specs, seed), taps)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
