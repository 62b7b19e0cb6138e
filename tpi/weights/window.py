"""The memory scheduler: a window of resident blocks that slides over the cyclic block list.

One loader thread reads the blocks in order into an arena and starts block i as soon as block
i - window has been released; the compute thread takes each block with `hold`, which gives its
space back the moment the `with` body ends. Retained blocks are loaded once and never leave; with
window None all are. Whatever goes wrong in the loader is raised by `hold`.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Protocol, Self

from tpi.errors import ConfigError, TpiError, WeightsError
from tpi.files import ClosedAtExit
from tpi.trace import Tracer
from tpi.weights.arena import Arena, ArenaPlan, place
from tpi.weights.blockfile import BlockEntry, tensor_views
from tpi.weights.direct_io import BlockReader, FileReader
from tpi.weights.shard import BlockId

if TYPE_CHECKING:
    import torch

# While weights are awaited, how often the waiter looks after its peers.
_CHECK_INTERVAL_S = 0.2
# A loader that does not end in this time hangs in the disk driver; its memory is then left alone.
_JOIN_TIMEOUT_S = 10.0


class WindowState:
    """How far loading and releasing have come; all waiting is on one condition.

    Positions count along the endless list of streamed blocks. At most `window` of them are loaded
    and not released. The loader calls `next_to_load`, `set_loaded` and `fail`.
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


class BlockSource(Protocol):
    """Where the model gets its weights: the window, or a dictionary in a test."""

    def hold(self, block: BlockId) -> AbstractContextManager[Mapping[str, "torch.Tensor"]]:
        """Lend the tensors of `block` by name; they are valid until the `with` body ends."""
        ...


class Window(ClosedAtExit):
    """Resident blocks of one rank; a `BlockSource`, and a context manager that closes it.

    `start` must be called before the first `hold`, when everything else that needs memory is there.

    Args:
        blocks: All blocks of a step in the order they are needed, without `embed`.
        window: Streamed blocks that are resident at once; None for all, loaded by `start`.
        retained: Blocks that are loaded by `start` and never leave.
        poison: Fill released space with NaN, so that use after release shows.
        tracer: Gets the spans "wait_weights" (this thread) and "load_block" (the loader).
        on_wait: Called at least every 0.2 s while a block is awaited, and before each block that
            `start` loads, with the bytes read from disk so far; what it raises is raised.
        reader: Reads the files; by default past the page cache.

    Raises:
        ConfigError: A window below 1, or retained blocks that are not in the list.
        WeightsError: A file is missing, truncated or altered.
    """

    def __init__(
        self,
        blocks: Sequence[BlockEntry],
        *,
        window: int | None,
        retained: frozenset[BlockId] = frozenset(),
        poison: bool = False,
        tracer: Tracer | None = None,
        on_wait: Callable[[int], None] | None = None,
        reader: BlockReader | None = None,
    ) -> None:
        _check_arguments(blocks, window, retained)
        self._blocks = tuple(blocks)
        self._poison = poison
        self._tracer = tracer or Tracer()
        self._on_wait = on_wait
        kept = [b for b in blocks if b.id in retained]
        streamed = [b for b in blocks if b.id not in retained]
        self._streams = window is not None and window < len(streamed)
        depth = window if window is not None and self._streams else max(len(streamed), 1)
        self._streamed = tuple(streamed)
        self._plan: ArenaPlan = place([b.num_bytes for b in streamed], depth)
        self._state = WindowState(depth)
        self.arena_bytes = self._plan.arena_bytes
        self.retained_bytes = sum(b.num_bytes for b in kept)
        self.streamed_bytes = 0
        self._kept = tuple(kept)
        self._resident: dict[BlockId, dict[str, torch.Tensor]] = {}
        self._next = 0  # index in blocks of the next hold
        self._taken = 0  # position of the next streamed block
        self._holding = False
        self._thread: threading.Thread | None = None
        self._reader = reader if reader is not None else FileReader(self._blocks)
        self._arena = Arena(self.arena_bytes)
        self._kept_arena = Arena(self.retained_bytes)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know about how the weights are read."""
        return tuple(self._reader.notes)

    def start(self) -> Self:
        """Load what stays resident, then start to load the rest in the background.

        Raises:
            WeightsError: A block that stays resident cannot be read; the window is closed then.
        """
        try:
            self._load_all_resident()
        except TpiError:
            self.close()
            raise
        if self._streams:
            self._thread = threading.Thread(target=self._run_loader, name="loader", daemon=True)
            self._thread.start()
        return self

    def _load_all_resident(self) -> None:
        offset = 0
        for entry in self._kept:
            self._load_resident(entry, self._kept_arena.view(offset, entry.num_bytes))
            offset += entry.num_bytes
        if not self._streams:
            for position, entry in enumerate(self._streamed):
                self._load_resident(entry, self._view(position))

    def _load_resident(self, entry: BlockEntry, into: memoryview) -> None:
        if self._on_wait is not None:
            self._on_wait(self._reader.bytes_read)
        self._reader.read(entry, into)
        self._resident[entry.id] = tensor_views(entry, into)

    def _view(self, position: int) -> memoryview:
        num_bytes = self._streamed[position % len(self._streamed)].num_bytes
        return self._arena.view(self._plan.offset(position), num_bytes)

    def _run_loader(self) -> None:
        try:
            while (position := self._state.next_to_load()) is not None:
                entry = self._streamed[position % len(self._streamed)]
                with self._tracer.span("load_block", entry.id.kind, entry.id.index):
                    self._reader.read(entry, self._view(position))
                self._state.set_loaded(position)
        except TpiError as exc:
            self._state.fail(exc)
        except Exception as exc:  # noqa: BLE001 - `hold` must learn that nothing will come
            self._state.fail(WeightsError(f"loader failed: {type(exc).__name__}: {exc}"))

    @contextmanager
    def hold(self, block: BlockId) -> Iterator[Mapping[str, "torch.Tensor"]]:
        """Lend the tensors of the next block; its space is reused once the `with` body ends.

        Raises:
            WeightsError: Not the next block of the list, or the loader could not read it.
        """
        expected = self._blocks[self._next].id
        if block != expected or self._holding:
            raise WeightsError(
                f"block {block.file_name} asked for, "
                + (f"{expected.file_name} is next" if block != expected else "another is held")
            )
        resident = self._resident.get(block)
        tensors = resident if resident is not None else self._take()
        self._holding = True
        try:
            yield tensors
        finally:
            self._holding = False
            self._next = (self._next + 1) % len(self._blocks)
            if resident is None:
                del tensors
                self._release()

    def _take(self) -> dict[str, "torch.Tensor"]:
        position = self._taken
        if self._thread is None:
            raise WeightsError("the window is not open")
        entry = self._streamed[position % len(self._streamed)]
        if not self._state.is_loaded(position):
            with self._tracer.span("wait_weights", entry.id.kind, entry.id.index):
                while not self._state.wait_loaded(position, _CHECK_INTERVAL_S):
                    if self._on_wait is not None:
                        self._on_wait(self._reader.bytes_read)
        self.streamed_bytes += entry.num_bytes
        return tensor_views(entry, self._view(position))

    def _release(self) -> None:
        if self._poison:
            _fill_with_nan(self._view(self._taken))
        self._taken += 1
        self._state.release_below(self._taken)

    def skip_to_start(self) -> None:
        """Pass over the blocks that are left of this cycle: the next hold is the first block.

        For steps that end early, such as a prefill chunk that needs no logits. Blocks passed
        over that were not read yet never are.
        """
        if self._holding:
            raise WeightsError("a block is still held")
        if self._next == 0:
            return
        self._next = 0
        if self._streams:
            self._taken = -(-self._taken // len(self._streamed)) * len(self._streamed)
            self._state.release_below(self._taken)

    def close(self) -> None:
        """End the loader, close files and give the memory back; twice is fine."""
        self._state.close()
        if self._thread is not None:
            self._thread.join(_JOIN_TIMEOUT_S)
            if self._thread.is_alive():
                return
            self._thread = None
        self._reader.close()
        self._resident.clear()
        self._arena.close()
        self._kept_arena.close()


def _check_arguments(
    blocks: Sequence[BlockEntry], window: int | None, retained: frozenset[BlockId]
) -> None:
    if window is not None and window < 1:
        raise ConfigError(f"window must be >= 1 or all, got {window}")
    unknown = retained - {b.id for b in blocks}
    if unknown:
        names = ", ".join(sorted(b.file_name for b in unknown))
        raise ConfigError(f"retained blocks that are not in the list: {names}")


def _fill_with_nan(view: memoryview) -> None:
    # All bits set is NaN in float32, float16 and bfloat16 alike.
    import numpy as np

    np.frombuffer(view, dtype=np.uint8).fill(0xFF)
