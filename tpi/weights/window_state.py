"""What the window's two threads share: how far loading and releasing have come.

The loader thread asks `next_to_load` and says `set_loaded` or `fail`; the compute thread asks
`wait_loaded` and says `release_below`. All waiting is on one condition.
"""

import threading

from tpi.errors import TpiError, WeightsError


class Slots:
    """Which positions of the endless streamed list are loaded and released, and why it stopped.

    Args:
        window: Positions that may be loaded and not released at one time.
    """

    def __init__(self, window: int) -> None:
        self._window = window
        self._changed = threading.Condition()
        self._loaded = 0  # all positions below were loaded or skipped
        self._released = 0  # all positions below were released or skipped
        self._error: TpiError | None = None
        self._closed = False

    def next_to_load(self) -> int | None:
        """Wait until there is room; return the position to load, or None to end the loader."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or self._loaded < self._released + self._window
            )
            return None if self._closed else self._loaded

    def set_loaded(self, position: int) -> None:
        """Say that the loader has filled `position`."""
        with self._changed:
            # It may have been skipped meanwhile.
            self._loaded = max(self._loaded, position + 1)
            self._changed.notify_all()

    def release_below(self, position: int) -> None:
        """Give back all positions below; those not loaded yet never will be."""
        with self._changed:
            self._released = position
            self._loaded = max(self._loaded, position)
            self._changed.notify_all()

    def fail(self, error: TpiError) -> None:
        """Say that the loader ended and why."""
        with self._changed:
            self._error = error
            self._changed.notify_all()

    def close(self) -> None:
        """End all waiting."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def is_loaded(self, position: int) -> bool:
        """Return whether `position` can be taken at once."""
        return self._loaded > position  # one int, written under the lock, only ever grows

    def wait_loaded(self, position: int, timeout_s: float) -> bool:
        """Wait for `position`; raise the loader's error if it will never come."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or self._error is not None or self._loaded > position,
                timeout_s,
            )
            if self._loaded > position:
                return True
            if self._closed:
                raise WeightsError("the window was closed while a block was awaited")
            if self._error is not None:
                raise self._error
            return False
