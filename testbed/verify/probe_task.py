"""What all tasks of a probe's agent share: commands, answers, the clock and the slope of a rate."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any


class Commands:
    """Lines from standard input; a serving agent looks whether there is one without taking it."""

    def __init__(self, fd: int = 0) -> None:
        self.fd = fd
        self._rest = b""

    @property
    def is_waiting(self) -> bool:
        """Whether a whole line was read and not yet taken."""
        return b"\n" in self._rest

    def __iter__(self) -> Iterator[bytes]:
        while True:
            while not self.is_waiting:
                data = os.read(self.fd, 64 << 10)
                if not data:
                    return
                self._rest += data
            line, _, self._rest = self._rest.partition(b"\n")
            yield line


Task = Callable[[Mapping[str, Any], Commands], dict[str, object] | None]


class Slope:
    """The line through points that fits best: one that came late moves it little."""

    def __init__(self) -> None:
        self.count = 0
        self._x = self._y = self._xx = self._xy = 0.0

    def add(self, at_s: float, amount: float) -> None:
        """Take one point."""
        self.count += 1
        self._x += at_s
        self._y += amount
        self._xx += at_s * at_s
        self._xy += at_s * amount

    @property
    def per_second(self) -> float:
        """How fast the amount grows."""
        spread = self.count * self._xx - self._x * self._x
        return (self.count * self._xy - self._x * self._y) / spread


def answer(event: Mapping[str, object]) -> None:
    """Write one line."""
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def sleep_until(at_ns: int) -> None:
    """Wait without spinning for a time of the monotonic clock."""
    time.sleep(max(0, at_ns - time.monotonic_ns()) / 1e9)
