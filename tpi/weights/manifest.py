"""What a rank's folder holds: the values of `manifest.json`, and their JSON form.

A manifest names no path. Its files must be exactly the blocks that follow from config and plan,
under the names that follow from the blocks, so a hostile one can choose neither. Read
`manifest_from_json` first.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tpi.config import DTYPES, ModelConfig, config_from_json, config_to_json
from tpi.errors import ConfigError, WeightsError
from tpi.jsonkeys import JsonKeys, json_object, shorten
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
_SHA256 = re.compile(r"[0-9a-f]{64}")


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


class _ManifestKeys(JsonKeys):
    """The keys of a manifest; only the splitter writes it, so only it can mend it."""

    error = WeightsError
    advice = "split the model again"

    def inside(self, key: str) -> "_ManifestKeys":
        """The keys of the object under `key`."""
        return _ManifestKeys(self.mapping(key), f"{self.where}: {key}")

    def must_be(self, key: str, expected: object) -> None:
        """Refuse any other value; as JSON, in which 1, 1.0 and true differ."""
        if _canonical(self.raw.get(key)) != _canonical(expected):
            raise self.fail(key, shorten(expected))

    def must_have(self, names: Sequence[str], what: str) -> None:
        """Refuse other keys than `names`."""
        for name in names:
            if name not in self.raw:
                raise WeightsError(f"{self.where}: {what} {name} is missing; {self.advice}")
        for name in self.raw.keys() - set(names):
            raise WeightsError(f"{self.where}: unexpected {what} {shorten(name)}; {self.advice}")


def manifest_from_json(raw: object, folder: Path) -> Manifest:
    """Check the content of a `manifest.json`; nothing of the block files is looked at.

    Raises:
        WeightsError: A key is missing or of the wrong type, the plan is not what its weights
            give, or files and tensors are not exactly those that config and plan ask for.
    """
    where = str(folder / MANIFEST_FILE)
    keys = _ManifestKeys(json_object(raw, where, WeightsError), where)
    keys.must_be("schema_version", SCHEMA_VERSION)
    try:
        config = config_from_json(keys.mapping("config"), "config")
        plan = _parse_plan(keys.inside("plan"), config)
    except ConfigError as exc:
        raise WeightsError(f"{where}: {exc}") from exc
    rank = keys.integer("rank", 0, plan.world_size - 1)
    dtype = keys.word("dtype")
    if dtype not in DTYPES:
        raise keys.fail("dtype", "one of " + ", ".join(DTYPES))
    source = keys.word("source")
    distinct = keys.integer("distinct_layers", 1, config.num_layers)
    digest = make_plan_digest(config, plan, dtype, distinct, source)
    keys.must_be("plan_digest", digest)
    specs = rank_blocks(config, plan, rank, dtype)
    files = keys.inside("files")
    files.must_have([spec.id.file_name for spec in specs], "file")
    blocks = tuple(_parse_block(spec, files.inside(spec.id.file_name), folder) for spec in specs)
    return Manifest(config, plan, rank, dtype, blocks, digest, distinct, source)


def _parse_plan(keys: _ManifestKeys, config: ModelConfig) -> ShardPlan:
    world_size = keys.integer("world_size", 1, MAX_WORLD_SIZE)
    weights = keys.raw.get("weights")
    if not isinstance(weights, list) or not all(isinstance(w, float) for w in weights):
        raise keys.fail("weights", "a list of numbers")
    plan = make_shard_plan(config, world_size, weights)
    keys.must_be("shares", [asdict(share) for share in plan.shares])
    return plan


def _parse_block(spec: BlockSpec, keys: _ManifestKeys, folder: Path) -> BlockEntry:
    tensors = keys.inside("tensors")
    tensors.must_have([tensor.name for tensor in spec.tensors], "tensor")
    for tensor in spec.tensors:
        tensors.must_be(tensor.name, {"dtype": tensor.dtype, "shape": list(tensor.shape)})
    layout = make_layout(spec.layout_input())
    keys.must_be("num_bytes", layout.num_bytes)
    sha256 = keys.word("sha256")
    if not _SHA256.fullmatch(sha256):
        raise keys.fail("sha256", "64 hex digits")
    path = folder / spec.id.file_name
    return BlockEntry(spec.id, path, layout.num_bytes, sha256, layout.places)
