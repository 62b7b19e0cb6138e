"""A rank's folder: its manifest and its block files, written, checked and viewed as tensors.

`open_shard_folder` checks everything against config and plan, file by file, before a weight is
used. A manifest names no path: its files must be exactly the blocks that follow from config and
plan, under the names that follow from the blocks. `tensor_views` turns the bytes of one file into
tensors without a copy. `layout.py` has the file format, `verify.py` the hashes.
"""

import hashlib
import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from msgspec import Meta, Struct, to_builtins

from tpi.decode import Count, CountOrZero, NumBytes, decode, one_of, shown
from tpi.errors import ConfigError, WeightsError
from tpi.files import open_regular, read_small_file, write_atomic
from tpi.model_config import DTYPES, ModelConfig, config_to_json, parse_config
from tpi.weights.layout import PAD_PREFIX, SAFETENSORS_DTYPES, TensorPlace, make_layout
from tpi.weights.safetensors_header import read_header
from tpi.weights.shard import BlockId, BlockSpec, ShardPlan, make_shard_plan, rank_blocks
from tpi.weights.verify import verify_once

if TYPE_CHECKING:
    import torch

MANIFEST_FILE = "manifest.json"
SCHEMA_VERSION: Literal[1] = 1
_MAX_MANIFEST_BYTES = 16 << 20  # 1024 layers take 2 MB
_ADVICE = "split the model again"  # only the splitter writes a manifest, so only it can mend it
_Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$", description="64 hex digits")]


@dataclass(frozen=True, slots=True)
class BlockEntry:
    """A block's file: where it is, its length and hash, and where its tensors lie in it."""

    id: BlockId
    path: Path
    num_bytes: int
    sha256: str
    places: tuple[TensorPlace, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything a rank knows about its shards; `blocks` in the order a step needs them.

    `plan_digest` is the same on all ranks of one split, and peers compare it when they join.
    `distinct_layers` of the layers are stored, the others are hard links to them. `source` says
    in words which weights these are; it is part of the digest.
    """

    config: ModelConfig
    plan: ShardPlan
    rank: int
    dtype: str
    blocks: tuple[BlockEntry, ...]
    plan_digest: str
    distinct_layers: int
    source: str


def make_plan_digest(
    config: ModelConfig, plan: ShardPlan, dtype: str, distinct_layers: int, source: str
) -> str:
    """SHA-256, as hex digits, over what all ranks of one split must have in common."""
    content = [
        SCHEMA_VERSION, config_to_json(config), to_builtins(plan), dtype, distinct_layers, source,
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class _Tensor(Struct, frozen=True, forbid_unknown_fields=True):
    """A tensor's dtype and shape."""

    dtype: str
    shape: tuple[CountOrZero, ...]


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    """A block's file."""

    num_bytes: NumBytes
    sha256: _Sha256
    tensors: dict[str, _Tensor]


class _ManifestFile(Struct, frozen=True, forbid_unknown_fields=True):
    """The content of `manifest.json`."""

    schema_version: Literal[1]
    rank: CountOrZero
    dtype: Annotated[str, one_of(sorted(DTYPES))]
    source: Annotated[str, Meta(min_length=1, max_length=4096)]
    distinct_layers: Count
    plan_digest: _Sha256
    config: dict[str, object]
    plan: ShardPlan
    files: dict[str, _File]


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json`; last of all files, since a folder that has one is complete.

    Raises:
        OSError: The folder cannot be written or the disk is full; nothing is left then.
    """
    files = {
        entry.id.file_name: _File(
            entry.num_bytes, entry.sha256, {p.name: _Tensor(p.dtype, p.shape) for p in entry.places}
        )
        for entry in manifest.blocks
    }
    content = _ManifestFile(
        schema_version=SCHEMA_VERSION, rank=manifest.rank, dtype=manifest.dtype,
        source=manifest.source, distinct_layers=manifest.distinct_layers,
        plan_digest=manifest.plan_digest, config=config_to_json(manifest.config),
        plan=manifest.plan, files=files,
    )  # fmt: skip
    write_atomic(folder / MANIFEST_FILE, json.dumps(to_builtins(content), indent=1).encode())


def read_manifest(folder: Path) -> Manifest:
    """Read what a rank's folder says it holds; no block is looked at yet.

    Raises:
        WeightsError: Folder or manifest is missing, a key is wrong, the plan is not what its
            weights give, or files and tensors are not exactly those that config and plan ask for.
    """
    return _read_manifest(folder)[0]


def _read_manifest(folder: Path) -> tuple[Manifest, bytes]:
    if not folder.is_dir():
        raise WeightsError(f"{folder}: expected a shard folder, got no such folder")
    path = folder / MANIFEST_FILE
    data = read_small_file(path, _MAX_MANIFEST_BYTES, WeightsError)
    found = decode(data, _ManifestFile, str(path), WeightsError, _ADVICE)
    try:
        return _checked(found, folder), data
    except _Refusal as exc:
        raise WeightsError(f"{path}: {exc}; {_ADVICE}") from exc
    except ConfigError as exc:
        raise WeightsError(f"{path}: {exc}") from exc


class _Refusal(Exception):
    """What contradicts the rest of the manifest."""


def _checked(found: _ManifestFile, folder: Path) -> Manifest:
    config = parse_config(found.config, "config")
    plan = make_shard_plan(config, found.plan.world_size, found.plan.weights)
    _must_be("plan.shares", plan.shares, found.plan.shares)
    if found.rank >= plan.world_size:
        raise _Refusal(f"rank must be < {plan.world_size}, got {found.rank}")
    if found.distinct_layers > config.num_layers:
        raise _Refusal(
            f"distinct_layers must be <= {config.num_layers}, got {found.distinct_layers}"
        )
    digest = make_plan_digest(config, plan, found.dtype, found.distinct_layers, found.source)
    _must_be("plan_digest", digest, found.plan_digest)
    specs = rank_blocks(config, plan, found.rank, found.dtype)
    _must_have([spec.id.file_name for spec in specs], found.files, "file")
    blocks = tuple(_checked_block(s, found.files[s.id.file_name], folder) for s in specs)
    return Manifest(
        config, plan, found.rank, found.dtype, blocks, digest, found.distinct_layers, found.source
    )


def _checked_block(spec: BlockSpec, found: _File, folder: Path) -> BlockEntry:
    name = spec.id.file_name
    _must_have([tensor.name for tensor in spec.tensors], found.tensors, "tensor")
    for tensor in spec.tensors:
        expected = _Tensor(tensor.dtype, tensor.shape)
        _must_be(f"files[{name}].tensors.{tensor.name}", expected, found.tensors[tensor.name])
    layout = spec.layout()
    _must_be(f"files[{name}].num_bytes", layout.num_bytes, found.num_bytes)
    return BlockEntry(spec.id, folder / name, layout.num_bytes, found.sha256, layout.places)


def _must_be(key: str, expected: object, got: object) -> None:
    if got != expected:
        raise _Refusal(f"{key} must be {shown(expected)}, got {shown(got)}")


def _must_have(names: Collection[str], found: Mapping[str, object], what: str) -> None:
    """Refuse other keys than `names`."""
    for name in names:
        if name not in found:
            raise _Refusal(f"{what} {name} is missing")
    for name in found.keys() - set(names):
        raise _Refusal(f"unexpected {what} {shown(name)}")


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
    layout = make_layout(tuple((p.name, p.dtype, p.shape) for p in entry.places))
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
    found = read_header(fd, where)
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
    """The tensors of a block file as views of its bytes, in a writable buffer that outlives them.

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
