"""The header of a safetensors file, parsed strictly and without mapping the file.

     0  u64 little-endian: bytes N of the JSON that follows
     8  N bytes of JSON: {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ...}
   8+N  data; offsets count from here; the tensors must cover it without hole, overlap or rest

mmap would count the mapped pages against the memory of a device, so files are read with `pread`.
The format's own library accepts duplicate keys; this parser does not.
"""

import math
import os
from typing import Annotated

from msgspec import Meta, Struct

from tpi.decode import convert, decode, shown
from tpi.errors import WeightsError
from tpi.weights.layout import TensorPlace

# A model of 1000 layers has a header of 1 MB; parsed JSON takes some ten times its length.
MAX_HEADER_BYTES = 8 << 20
DTYPE_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "F16": 2,
    "BF16": 2, "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip
_METADATA = "__metadata__"
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


_Size = Annotated[int, Meta(ge=0, le=(1 << 63) - 1, description="a size below 2^63")]


class _Entry(Struct, frozen=True, forbid_unknown_fields=True):
    """What the header says of one tensor."""

    dtype: str
    shape: Annotated[tuple[_Size, ...], Meta(max_length=8, description="a list of at most 8 sizes")]
    data_offsets: tuple[_Size, _Size]


def read_header(fd: int, where: str) -> dict[str, TensorPlace]:
    """Read and check the header of an open regular file; `where` is its name, for errors.

    Gives the tensors by name, in the order of their bytes; dtypes are the format's words ("BF16").

    Raises:
        WeightsError: The file is not safetensors, is truncated or has bytes too many, or its
            header contradicts itself. No more than `MAX_HEADER_BYTES` are read.
    """
    try:
        file_bytes = os.fstat(fd).st_size
        head = os.pread(fd, 8, 0)
        wanted = int.from_bytes(head, "little")
        fits = len(head) == 8 and wanted <= min(MAX_HEADER_BYTES, file_bytes - 8)
        text = os.pread(fd, wanted, 8) if fits else b""
    except OSError as exc:
        raise WeightsError(f"{where}: cannot be read: {exc.strerror}") from exc
    return parse_header(head + text, file_bytes, where)


def parse_header(head: bytes, file_bytes: int, where: str) -> dict[str, TensorPlace]:
    """As `read_header`, from the file's first bytes (the length, the JSON, maybe more)."""
    if head.startswith(_PICKLE_STARTS):
        raise WeightsError(f"{where}: a pickle or zip archive under a safetensors name; refused")
    if len(head) < 8 or file_bytes < 8:
        raise WeightsError(f"{where}: expected at least 8 bytes, got {min(len(head), file_bytes)}")
    length = int.from_bytes(head[:8], "little")
    if length > MAX_HEADER_BYTES:
        raise WeightsError(
            f"{where}: header length {length}, expected at most {MAX_HEADER_BYTES} bytes"
        )
    if 8 + length > min(file_bytes, len(head)):
        raise WeightsError(
            f"{where}: header of {length} bytes does not fit the {file_bytes} bytes of the file"
        )
    text = head[8 : 8 + length]
    if not text.startswith(b"{"):
        raise WeightsError(f"{where}: header is not a JSON object: it starts {text[:8]!r}")
    what = f"{where}: header"
    raw = decode(text, dict[str, object], what, WeightsError)
    metadata = raw.pop(_METADATA, None)
    if metadata is not None:
        convert(metadata, dict[str, str], f"{what}: {_METADATA}", WeightsError)
    tensors = [_parse_tensor(name, entry, 8 + length, where) for name, entry in raw.items()]
    tensors.sort(key=lambda t: (t.offset, t.num_bytes))
    _check_cover(tensors, 8 + length, file_bytes, where)
    return {tensor.name: tensor for tensor in tensors}


def _parse_tensor(name: str, raw: object, data_offset: int, where: str) -> TensorPlace:
    at = f"{where}: tensor {name[:80]!r}"
    entry = convert(raw, _Entry, at, WeightsError)
    if entry.dtype not in DTYPE_BYTES:
        raise WeightsError(f"{at}: unknown dtype {shown(entry.dtype)}")
    start, end = entry.data_offsets
    num_bytes = math.prod(entry.shape) * DTYPE_BYTES[entry.dtype]
    if end - start != num_bytes:
        raise WeightsError(
            f"{at}: {entry.dtype} of shape {shown(list(entry.shape))} takes {num_bytes} bytes, "
            f"data_offsets {shown([start, end])} span {end - start}"
        )
    return TensorPlace(name, entry.dtype, entry.shape, data_offset + start, num_bytes)


def _check_cover(tensors: list[TensorPlace], start: int, file_bytes: int, where: str) -> None:
    end = start
    for tensor in tensors:
        if tensor.offset != end:
            what = "overlaps the tensor before it" if tensor.offset < end else "leaves a hole"
            raise WeightsError(
                f"{where}: tensor {tensor.name[:80]!r} {what}: "
                f"expected data at byte {end}, got {tensor.offset}"
            )
        end += tensor.num_bytes
    if end != file_bytes:
        what = "truncated" if end > file_bytes else "bytes after the last tensor"
        raise WeightsError(f"{where}: {what}: expected {end} bytes, got {file_bytes}")
