"""Block files for tests: real ones on disk, and a reader whose every read waits to be let go."""

import threading
from pathlib import Path

import torch

from tpi.weights.blockfile import BlockEntry
from tpi.weights.layout import make_layout
from tpi.weights.shard import BlockId


def make_entry(
    folder: Path, block: BlockId, num_rows: int, *, dtype: str = "float32", width: int = 64
) -> BlockEntry:
    layout = make_layout((("weight", dtype, (num_rows, width)),))
    return BlockEntry(block, folder / block.file_name, layout.num_bytes, "", layout.places)


def write_entry(
    folder: Path, block: BlockId, num_rows: int, *, dtype: str = "float32", width: int = 64
) -> BlockEntry:
    """A block file whose tensor tells block and row: weight[r, :] = 100 * index + r."""
    entry = make_entry(folder, block, num_rows, dtype=dtype, width=width)
    layout = make_layout((("weight", dtype, (num_rows, width)),))
    weight = content(block, num_rows, dtype=dtype, width=width)
    data = weight.view(torch.uint8).numpy().tobytes()
    body = (layout.header + bytes(entry.places[0].offset - len(layout.header)) + data).ljust(
        layout.num_bytes, b"\0"
    )
    entry.path.write_bytes(body)
    return entry


def content(
    block: BlockId, num_rows: int, *, dtype: str = "float32", width: int = 64
) -> torch.Tensor:
    rows = torch.arange(num_rows, dtype=torch.float32) + 100 * block.index
    rows += {"attn": 0.25, "ffn": 0.5}.get(block.kind, 0.75)
    matrix = rows[:, None].expand(num_rows, width)
    return matrix.to(getattr(torch, dtype)).contiguous()


class GatedReader:
    """Stands in for the files: a read begins at once, is seen, and ends when it is let go."""

    def __init__(self, *, open_gate: bool = False) -> None:
        self.bytes_read = 0
        self.notes: tuple[str, ...] = ()
        self.closed = 0
        self.started: list[BlockId] = []
        self.errors: dict[BlockId, Exception] = {}
        self._changed = threading.Condition()
        self._open_gate = open_gate
        self._allowed = 0
        self._waiting = False

    def read(self, entry: BlockEntry, into: memoryview) -> None:
        with self._changed:
            self.started.append(entry.id)
            number = len(self.started)
            self._waiting = True
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: self._open_gate or self._allowed >= number, 10)
            self._waiting = False
        if entry.id in self.errors:
            raise self.errors[entry.id]
        into[:] = bytes([1 + entry.id.index]) * len(into)

    def let_go(self, count: int = 1) -> None:
        with self._changed:
            self._allowed += count
            self._changed.notify_all()

    def open_gate(self) -> None:
        with self._changed:
            self._open_gate = True
            self._changed.notify_all()

    def wait_started(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.started) >= count, 10), self.started

    def close(self) -> None:
        self.closed += 1


def open_files() -> int:
    """File descriptors of this process."""
    return len(list(Path("/proc/self/fd").iterdir()))
