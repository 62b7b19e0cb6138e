"""Where the bytes of a block file lie: pure arithmetic, no files, no torch.

A block file is a valid safetensors file made for O_DIRECT:

     0  u64 little-endian: bytes of the JSON that follows
     8  JSON header, padded with spaces so that the data begins at a multiple of 4096
        data: each tensor at a multiple of 64 of the file, in the order given;
        gaps and the tail are U8 tensors `__pad0__`, `__pad1__`, ... since the format allows no
        holes; the whole file is a multiple of 4096 bytes long

So one sequential read brings the file into a page-aligned buffer and tensors are views of it.
"""

import functools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from tpi.model_config import DTYPE_BYTES

PAGE_BYTES = 4096  # what O_DIRECT asks of offsets, lengths and buffers, and a memory page
TENSOR_ALIGN_BYTES = 64  # a cache line, and the widest vector register
PAD_PREFIX = "__pad"
SAFETENSORS_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
TensorForm = tuple[str, str, tuple[int, ...]]  # name, dtype, shape


@dataclass(frozen=True, slots=True)
class TensorPlace:
    """One tensor of a block file; `offset` counts from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class BlockLayout:
    """A whole block file: its header bytes, its length, and where its tensors lie."""

    header: bytes
    num_bytes: int
    places: tuple[TensorPlace, ...]


def align_up(num_bytes: int, alignment: int) -> int:
    """The least multiple of `alignment` that is at least `num_bytes`."""
    return -(-num_bytes // alignment) * alignment


def tensor_bytes(dtype: str, shape: Sequence[int]) -> int:
    """Bytes of a dense tensor."""
    return math.prod(shape) * DTYPE_BYTES[dtype]


@functools.lru_cache(maxsize=64)  # the layers of a model have two layouts
def make_layout(tensors: tuple[TensorForm, ...]) -> BlockLayout:
    """Lay tensors out in a block file; their names differ and do not begin with `__`."""
    entries: dict[str, object] = {}
    spans: list[tuple[int, int]] = []  # of the tensors, from the start of the data
    end = 0
    for name, dtype, shape in tensors:
        start = align_up(end, TENSOR_ALIGN_BYTES)
        _add_pad(entries, end, start)
        end = start + tensor_bytes(dtype, shape)
        entries[name] = _entry(SAFETENSORS_DTYPES[dtype], shape, start, end)
        spans.append((start, end))
    data_bytes = align_up(end, PAGE_BYTES)
    _add_pad(entries, end, data_bytes)
    header = _header_bytes(entries)
    places = tuple(
        TensorPlace(name, dtype, shape, len(header) + start, stop - start)
        for (name, dtype, shape), (start, stop) in zip(tensors, spans, strict=True)
    )
    return BlockLayout(header, len(header) + data_bytes, places)


def _entry(dtype: str, shape: Sequence[int], start: int, end: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


def _add_pad(entries: dict[str, object], start: int, end: int) -> None:
    if end > start:
        number = sum(name.startswith(PAD_PREFIX) for name in entries)
        entries[f"{PAD_PREFIX}{number}__"] = _entry("U8", [end - start], start, end)


def _header_bytes(entries: dict[str, object]) -> bytes:
    text = json.dumps(entries, separators=(",", ":")).encode()
    num_bytes = align_up(8 + len(text), PAGE_BYTES)
    return (num_bytes - 8).to_bytes(8, "little") + text.ljust(num_bytes - 8, b" ")
