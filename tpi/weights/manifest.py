"""What a rank's folder holds: the values of `manifest.json`, and their JSON form.

A manifest names no path. Its files must be exactly the blocks that follow from config and plan,
under the names that follow from the blocks, so a hostile one can choose neither. Read
`manifest_from_json` first.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct

from tpi.decode import Count, CountOrZero, NumBytes, convert, shown
from tpi.errors import ConfigError, WeightsError
from tpi.model_config import ModelConfig, config_from_json, config_to_json
from tpi.weights.layout import TensorPlace, make_layout
from tpi.weights.shard import (
    MAX_WORLD_SIZE,
    BlockId,
    BlockSpec,
    ShardPlan,
    make_shard_plan,
    rank_blocks,
)

MANIFEST_FILE = "manifest.json"
SCHEMA_VERSION = 1
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
    parts = [SCHEMA_VERSION, config_to_json(config), asdict(plan), dtype, distinct_layers, source]
    return hashlib.sha256(_canonical(parts).encode()).hexdigest()


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True)


def manifest_to_json(manifest: Manifest) -> dict[str, object]:
    """The content of `manifest.json`."""
    return {
        "schema_version": SCHEMA_VERSION,
        "rank": manifest.rank,
        "dtype": manifest.dtype,
        "source": manifest.source,
        "distinct_layers": manifest.distinct_layers,
        "plan_digest": manifest.plan_digest,
        "config": config_to_json(manifest.config),
        "plan": asdict(manifest.plan),
        "files": {
            entry.id.file_name: {
                "num_bytes": entry.num_bytes,
                "sha256": entry.sha256,
                "tensors": {
                    place.name: {"dtype": place.dtype, "shape": list(place.shape)}
                    for place in entry.places
                },
            }
            for entry in manifest.blocks
        },
    }


class _Tensor(Struct, frozen=True, forbid_unknown_fields=True):
    """Of which dtype and shape a tensor is."""

    dtype: str
    shape: tuple[CountOrZero, ...]


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    """A block's file."""

    num_bytes: NumBytes
    sha256: _Sha256
    tensors: dict[str, _Tensor]


class _Share(Struct, frozen=True, forbid_unknown_fields=True):
    """A rank's share of the plan, as `RankShare`."""

    q_start: int
    q_stop: int
    kv_start: int
    kv_stop: int
    ffn_start: int
    ffn_stop: int


class _Plan(Struct, frozen=True, forbid_unknown_fields=True):
    """The plan; the shares must be those that its weights give."""

    world_size: Annotated[int, Meta(ge=1, le=MAX_WORLD_SIZE)]
    weights: list[float]
    shares: list[_Share]


class _ManifestFile(Struct, frozen=True, forbid_unknown_fields=True):
    """The content of `manifest.json`."""

    schema_version: Literal[1]
    rank: CountOrZero
    dtype: Literal["float32", "float16", "bfloat16"]
    source: Annotated[str, Meta(min_length=1, max_length=4096)]
    distinct_layers: Count
    plan_digest: _Sha256
    config: dict[str, object]
    plan: _Plan
    files: dict[str, _File]


def manifest_from_json(raw: object, folder: Path) -> Manifest:
    """Check the content of a `manifest.json`; nothing of the block files is looked at.

    Raises:
        WeightsError: A key is missing or of the wrong type, the plan is not what its weights
            give, or files and tensors are not exactly those that config and plan ask for.
    """
    where = str(folder / MANIFEST_FILE)
    found = convert(raw, _ManifestFile, where, WeightsError, _ADVICE)
    try:
        return _checked(found, folder)
    except _Refusal as exc:
        raise WeightsError(f"{where}: {exc}; {_ADVICE}") from exc
    except ConfigError as exc:
        raise WeightsError(f"{where}: {exc}") from exc


class _Refusal(Exception):
    """What contradicts the rest of the manifest."""


def _checked(found: _ManifestFile, folder: Path) -> Manifest:
    config = config_from_json(found.config, "config")
    plan = make_shard_plan(config, found.plan.world_size, found.plan.weights)
    shares = [_Share(**asdict(share)) for share in plan.shares]
    _must_be("plan.shares", shares, found.plan.shares)
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
    layout = make_layout(spec.layout_input())
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
