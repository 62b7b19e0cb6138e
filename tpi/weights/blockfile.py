"""A rank's folder of block files: opened and checked, written, and viewed as tensors.

`open_shard_folder` is the only door: what it returns was checked against config and plan, file
by file, before a weight is used. `tensor_views` turns the bytes of one file into tensors without
a copy. `layout.py` has the file format, `manifest.py` the values, `verify.py` the hashes.
"""

import json
import os
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tpi.errors import WeightsError
from tpi.files import open_regular, parse_json, read_small_file, write_atomic
from tpi.weights.layout import (
    PAD_PREFIX,
    SAFETENSORS_DTYPES,
    BlockLayout,
    TensorPlace,
    make_layout,
)
from tpi.weights.manifest import (
    MANIFEST_FILE,
    BlockEntry,
    Manifest,
    make_plan_digest,
    manifest_from_json,
    manifest_to_json,
)
from tpi.weights.safetensors_header import read_header
from tpi.weights.shard import BlockId
from tpi.weights.verify import verify_once

if TYPE_CHECKING:
    import torch

__all__ = [
    "MANIFEST_FILE", "BlockEntry", "BlockLayout", "Manifest", "TensorPlace", "make_layout",
    "make_plan_digest", "open_shard_folder", "tensor_views", "write_manifest",
]  # fmt: skip

_MAX_MANIFEST_BYTES = 16 << 20  # 1024 layers take 2 MB


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json`; last of all files, since a folder that has one is complete.

    Raises:
        OSError: The folder cannot be written or the disk is full; nothing is left then.
    """
    data = json.dumps(manifest_to_json(manifest), indent=1).encode()
    write_atomic(folder / MANIFEST_FILE, data)


def read_manifest(folder: Path) -> Manifest:
    """Read what a rank's folder says it holds; no block is looked at yet.

    Raises:
        WeightsError: The folder or its manifest is missing, or the manifest is no such thing.
    """
    return _read_manifest(folder)[0]


def _read_manifest(folder: Path) -> tuple[Manifest, bytes]:
    if not folder.is_dir():
        raise WeightsError(f"{folder}: expected a shard folder, got no such folder")
    path = folder / MANIFEST_FILE
    data = read_small_file(path, _MAX_MANIFEST_BYTES, WeightsError)
    return manifest_from_json(parse_json(data, str(path), WeightsError), folder), data


def open_shard_folder(
    folder: Path, *, verify: bool = True, only: Collection[BlockId] | None = None
) -> Manifest:
    """Open a rank's folder and check everything in it, or the blocks in `only`.

    Manifest, lengths and headers are checked always; SHA-256 once, unless `verify` is False.
    Nothing outside the folder is opened, nothing that is not a regular file is read. What comes
    back has the blocks that were checked.

    Raises:
        WeightsError: With the file and the reason: missing, not a regular file, truncated,
            altered, of another shape or dtype than the plan asks for, holding NaN.
    """
    manifest, data = _read_manifest(folder)
    if only is not None:
        manifest = replace(manifest, blocks=tuple(e for e in manifest.blocks if e.id in only))
    for entry in manifest.blocks:
        _check_block_file(entry)
    if verify:
        verify_once(folder, manifest.blocks, manifest.dtype, data)
    return manifest


def _check_block_file(entry: BlockEntry) -> None:
    """Length and header on disk must be, byte for byte, those of the layout."""
    layout = make_layout([(p.name, p.dtype, p.shape) for p in entry.places])
    fd = open_regular(entry.path, WeightsError)
    try:
        num_bytes = os.fstat(fd).st_size
        same = os.pread(fd, len(layout.header), 0) == layout.header
        if not same and num_bytes:
            _explain_header(fd, entry)
        if num_bytes != entry.num_bytes:
            what = "truncated" if num_bytes < entry.num_bytes else "bytes too many"
            raise WeightsError(
                f"{entry.path}: {what}: expected {entry.num_bytes} bytes, got {num_bytes}"
            )
    except OSError as exc:
        raise WeightsError(f"{entry.path}: cannot be read: {exc.strerror}") from exc
    finally:
        os.close(fd)


def _explain_header(fd: int, entry: BlockEntry) -> None:
    """Raise what is wrong with a header that is not the expected one."""
    where = str(entry.path)
    found = read_header(fd, where).by_name()
    for place in entry.places:
        got = found.pop(place.name, None)
        if got is None:
            raise WeightsError(f"{where}: tensor {place.name} is missing")
        expected = (SAFETENSORS_DTYPES[place.dtype], place.shape)
        if (got.dtype, got.shape) != expected:
            raise WeightsError(
                f"{where}: tensor {place.name}: expected {expected[0]} {list(expected[1])}, "
                f"got {got.dtype} {list(got.shape)}"
            )
    for name in found:
        if not name.startswith(PAD_PREFIX):
            raise WeightsError(f"{where}: unexpected tensor {name[:80]!r}")
    raise WeightsError(f"{where}: not laid out for direct reads; split the model again")


def tensor_views(entry: BlockEntry, buffer: memoryview) -> "dict[str, torch.Tensor]":
    """The tensors of a block file as views of its bytes: no copy.

    Args:
        entry: The block.
        buffer: Writable; starts with the file's byte 0. It must outlive the tensors.

    Raises:
        WeightsError: The buffer is shorter than the file.
    """
    import torch

    if buffer.nbytes < entry.num_bytes:
        raise WeightsError(
            f"{entry.path}: expected a buffer of {entry.num_bytes} bytes, got {buffer.nbytes}"
        )
    views = {}
    for place in entry.places:
        dtype: torch.dtype = getattr(torch, place.dtype)
        if not place.num_bytes:  # frombuffer refuses to view nothing
            views[place.name] = torch.empty(place.shape, dtype=dtype)
            continue
        count = place.num_bytes // dtype.itemsize
        flat = torch.frombuffer(buffer, dtype=dtype, count=count, offset=place.offset)
        views[place.name] = flat.view(place.shape)
    return views
