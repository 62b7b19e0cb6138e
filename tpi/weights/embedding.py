"""The embedding matrix, read row by row from its file and never held.

A prompt needs a few rows of a matrix of up to a gigabyte. `EmbeddingRows.rows` reads, for every
distinct token id, the aligned span of the file that covers its row: 4 KiB more than the row at
most, about 0.1 ms each.
"""

from collections.abc import Sequence

import torch

from tpi.errors import ConfigError
from tpi.files import ClosedAtExit
from tpi.weights.arena import Arena
from tpi.weights.blockfile import BlockEntry
from tpi.weights.direct_io import open_block
from tpi.weights.layout import PAGE_BYTES, align_up


class EmbeddingRows(ClosedAtExit):
    """Rows of the `embed` block by token id; a context manager.

    Raises:
        WeightsError: The file is missing, or not as long as its manifest says.
    """

    def __init__(self, entry: BlockEntry) -> None:
        self._place = next(p for p in entry.places if p.name == "weight")
        self._vocab_size, self._width = self._place.shape
        self._row_bytes = self._place.num_bytes // self._vocab_size
        self._file = open_block(entry)
        self._arena = Arena(align_up(self._row_bytes, PAGE_BYTES) + PAGE_BYTES)

    @property
    def bytes_read(self) -> int:
        """Bytes read from the file so far, whole spans."""
        return self._file.bytes_read

    def rows(self, ids: Sequence[int]) -> torch.Tensor:
        """Return the rows of `ids` in their order.

        Shapes: len(ids) -> (len(ids), D) in the storage dtype.

        Raises:
            ConfigError: An id that is not in the vocabulary.
            WeightsError: The file changed, ends early, or cannot be read.
        """
        for token in ids:
            if not 0 <= token < self._vocab_size:
                raise ConfigError(f"token id must be in 0..{self._vocab_size - 1}, got {token}")
        self._file.check_unchanged()
        rows_SD = torch.empty((len(ids), self._width), dtype=getattr(torch, self._place.dtype))
        first_at: dict[int, int] = {}
        for i, token in enumerate(ids):
            if token in first_at:
                rows_SD[i] = rows_SD[first_at[token]]
                continue
            first_at[token] = i
            rows_SD[i] = self._read_row(token)
        return rows_SD

    def _read_row(self, token: int) -> torch.Tensor:
        """Return a view of the scratch memory that holds one row, until the next call."""
        start = self._place.offset + token * self._row_bytes
        span_start = start // PAGE_BYTES * PAGE_BYTES
        span_bytes = align_up(start + self._row_bytes, PAGE_BYTES) - span_start
        span = self._arena.view(0, span_bytes)
        self._file.read_into(span, span_start)
        dtype: torch.dtype = getattr(torch, self._place.dtype)
        return torch.frombuffer(span, dtype=dtype, count=self._width, offset=start - span_start)

    def close(self) -> None:
        """Close the file; twice is fine."""
        self._file.close()
        self._arena.close()
