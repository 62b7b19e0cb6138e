"""The memory scheduler: a window of resident blocks that slides over the cyclic block list.

One loader thread reads the blocks in order into an arena and starts block i as soon as block
i - window has been released; the compute thread takes each block with `hold`, which gives its
space back the moment the `with` body ends. Retained blocks are loaded once and never leave; with
window None all are. Whatever goes wrong in the loader is raised by `hold`.

`tpi/weights/window_state.py` has the state both threads share. Read `Window.hold` first.
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
from tpi.weights.window_state import Slots

if TYPE_CHECKING:
    import torch

# While weights are awaited, how often the waiter looks after its peers.
_CHECK_INTERVAL_S = 0.2
# A loader that does not end in this time hangs in the disk driver; its memory is then left alone.
_JOIN_TIMEOUT_S = 10.0


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

    Attributes:
        arena_bytes: Memory of the streamed blocks (of all blocks, with window None).
        retained_bytes: Memory of the retained blocks.
        streamed_bytes: Bytes of streamed blocks that were taken by `hold` so far.

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
        self._slots = Slots(depth)
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
    def direct_io(self) -> bool:
        """Whether all reads bypass the page cache."""
        return self._reader.direct_io

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
            while (position := self._slots.next_to_load()) is not None:
                entry = self._streamed[position % len(self._streamed)]
                with self._tracer.span("load_block", entry.id.kind, entry.id.index):
                    self._reader.read(entry, self._view(position))
                self._slots.set_loaded(position)
        except TpiError as exc:
            self._slots.fail(exc)
        except Exception as exc:  # noqa: BLE001 - whoever waits must learn that nothing will come
            self._slots.fail(WeightsError(f"loader failed: {type(exc).__name__}: {exc}"))

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
        if not self._slots.is_loaded(position):
            with self._tracer.span("wait_weights", entry.id.kind, entry.id.index):
                while not self._slots.wait_loaded(position, _CHECK_INTERVAL_S):
                    if self._on_wait is not None:
                        self._on_wait(self._reader.bytes_read)
        self.streamed_bytes += entry.num_bytes
        return tensor_views(entry, self._view(position))

    def _release(self) -> None:
        if self._poison:
            _fill_with_nan(self._view(self._taken))
        self._taken += 1
        self._slots.release_below(self._taken)

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
            self._slots.release_below(self._taken)

    def close(self) -> None:
        """End the loader, close files and give the memory back; twice is fine."""
        self._slots.close()
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
