"""What a rank's folder holds: the values of `manifest.json`, and their JSON form.

A manifest names no path. Its files must be exactly the blocks that follow from config and plan,
under the names that follow from the blocks, so a hostile one can choose neither. Read
`manifest_from_json` first.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from tpi.config import DTYPES, ModelConfig, config_from_json, config_to_json
from tpi.errors import ConfigError, WeightsError
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
_MAX_SOURCE_CHARS = 4096
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ADVICE = "split the model again"


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
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


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


def manifest_from_json(raw: object, folder: Path) -> Manifest:
    """Check the content of a `manifest.json`; nothing of the block files is looked at.

    Raises:
        WeightsError: A key is missing or of the wrong type, the plan is not what its weights
            give, or files and tensors are not exactly those that config and plan ask for.
    """
    where = str(folder / MANIFEST_FILE)
    top = _mapping(raw, where)
    version = top.get("schema_version")
    if version != SCHEMA_VERSION:
        raise WeightsError(
            f"{where}: schema_version: expected {SCHEMA_VERSION}, got {_short(version)}; {_ADVICE}"
        )
    try:
        config = config_from_json(_mapping(top.get("config"), f"{where}: config"), where)
        plan = _parse_plan(top.get("plan"), config, where)
    except ConfigError as exc:
        raise WeightsError(str(exc)) from exc
    rank = _integer(top.get("rank"), 0, plan.world_size - 1, f"{where}: rank")
    dtype = _word(top.get("dtype"), f"{where}: dtype")
    if dtype not in DTYPES:
        raise _wrong(f"{where}: dtype", "one of " + ", ".join(DTYPES), dtype)
    source = _word(top.get("source"), f"{where}: source")
    distinct = _integer(
        top.get("distinct_layers"), 1, config.num_layers, f"{where}: distinct_layers"
    )
    digest = make_plan_digest(config, plan, dtype, distinct, source)
    if top.get("plan_digest") != digest:
        raise _wrong(f"{where}: plan_digest", digest, top.get("plan_digest"))
    specs = rank_blocks(config, plan, rank, dtype)
    files = _mapping(top.get("files"), f"{where}: files")
    _same_keys([spec.id.file_name for spec in specs], files, f"{where}: files", "file")
    blocks = tuple(_parse_block(spec, files[spec.id.file_name], folder) for spec in specs)
    return Manifest(config, plan, rank, dtype, blocks, digest, distinct, source)


def _parse_plan(raw: object, config: ModelConfig, where: str) -> ShardPlan:
    where = f"{where}: plan"
    top = _mapping(raw, where)
    world_size = _integer(top.get("world_size"), 1, MAX_WORLD_SIZE, f"{where}: world_size")
    weights = top.get("weights")
    if not isinstance(weights, list) or not all(
        isinstance(w, int | float) and not isinstance(w, bool) and abs(w) < 1e300 for w in weights
    ):
        raise _wrong(f"{where}: weights", "a list of numbers", weights)
    plan = make_shard_plan(config, world_size, weights)
    if top.get("shares") != [asdict(share) for share in plan.shares]:
        raise WeightsError(f"{where}: shares are not those that its weights give; {_ADVICE}")
    return plan


def _parse_block(spec: BlockSpec, raw: object, folder: Path) -> BlockEntry:
    name = spec.id.file_name
    where = f"{folder / MANIFEST_FILE}: {name}"
    top = _mapping(raw, where)
    tensors = _mapping(top.get("tensors"), f"{where}: tensors")
    _same_keys([t.name for t in spec.tensors], tensors, where, "tensor")
    for tensor in spec.tensors:
        expected = {"dtype": tensor.dtype, "shape": list(tensor.shape)}
        if tensors[tensor.name] != expected:
            raise _wrong(f"{where}: tensor {tensor.name}", str(expected), tensors[tensor.name])
    layout = make_layout(spec.layout_input())
    if top.get("num_bytes") != layout.num_bytes:
        raise _wrong(f"{where}: num_bytes", str(layout.num_bytes), top.get("num_bytes"))
    sha256 = _word(top.get("sha256"), f"{where}: sha256")
    if not _SHA256.fullmatch(sha256):
        raise _wrong(f"{where}: sha256", "64 hex digits", sha256)
    return BlockEntry(spec.id, folder / name, layout.num_bytes, sha256, layout.places)


def _same_keys(expected: list[str], got: Mapping[str, object], where: str, what: str) -> None:
    for name in expected:
        if name not in got:
            raise WeightsError(f"{where}: {what} {name} is missing; {_ADVICE}")
    for name in got.keys() - set(expected):
        raise WeightsError(f"{where}: unexpected {what} {_short(name)}; {_ADVICE}")


def _wrong(what: str, expected: str, got: object) -> WeightsError:
    return WeightsError(f"{what}: expected {expected}, got {_short(got)}; {_ADVICE}")


def _mapping(value: object, what: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise _wrong(what, "a JSON object", value)
    return value


def _integer(value: object, low: int, high: int, what: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise _wrong(what, f"an integer from {low} to {high}", value)
    return value


def _word(value: object, what: str) -> str:
    if not isinstance(value, str) or not value or len(value) > _MAX_SOURCE_CHARS:
        raise _wrong(what, f"a string of 1 to {_MAX_SOURCE_CHARS} characters", value)
    return value


def _short(value: object) -> str:
    return repr(value)[:80]
