"""Small shard folders for tests, written without the splitter; and a small model."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tpi.model_config import ModelConfig
from tpi.weights.blockfile import BlockEntry, Manifest, make_plan_digest
from tpi.weights.blockfile import write_manifest as write
from tpi.weights.layout import make_layout
from tpi.weights.shard import make_shard_plan, rank_blocks


def small_config(**changes: Any) -> ModelConfig:
    numbers: dict[str, Any] = {
        "architecture": "llama", "num_layers": 2, "hidden_size": 16, "num_heads": 4,
        "num_kv_heads": 2, "head_size": 4, "ffn_size": 24, "vocab_size": 40,
        "max_positions": 64, "rms_eps": 1e-5, "rope_theta": 1e4,
    }  # fmt: skip
    return ModelConfig(**{**numbers, **changes})


def block_bytes(
    tensors: Sequence[tuple[str, str, tuple[int, ...]]], dtype: str, seed: int = 0
) -> bytes:
    """A block file with random finite values; `tensors` as `make_layout` takes them."""
    layout = make_layout(tuple(tensors))
    data = bytearray(layout.header.ljust(layout.num_bytes, b"\0"))
    rng = np.random.default_rng(seed)
    for place in layout.places:
        values = rng.standard_normal(place.shape).astype(np.float32)
        if dtype == "bfloat16":
            raw = (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
        else:
            raw = values.astype(dtype).tobytes()
        data[place.offset : place.offset + place.num_bytes] = raw
    return bytes(data)


def write_shard_folder(
    folder: Path, config: ModelConfig, *, world_size: int = 2, rank: int = 0,
    dtype: str = "float32", weights: Sequence[float] | None = None,
    distinct_layers: int | None = None,
) -> Manifest:  # fmt: skip
    """A rank's folder with random weights; layers beyond `distinct_layers` are hard links."""
    folder.mkdir()
    plan = make_shard_plan(config, world_size, weights)
    distinct = distinct_layers or config.num_layers
    blocks = []
    for seed, spec in enumerate(rank_blocks(config, plan, rank, dtype)):
        path = folder / spec.id.file_name
        first = folder / f"{spec.id.kind}-{spec.id.index % distinct:03d}.safetensors"
        if spec.id.kind in ("attn", "ffn") and first.exists():
            path.hardlink_to(first)
        else:
            path.write_bytes(
                block_bytes([(t.name, t.dtype, t.shape) for t in spec.tensors], dtype, seed)
            )
        data = path.read_bytes()
        layout = spec.layout()
        digest = hashlib.sha256(data).hexdigest()
        blocks.append(BlockEntry(spec.id, path, len(data), digest, layout.places))
    digest = make_plan_digest(config, plan, dtype, distinct, "test")
    manifest = Manifest(config, plan, rank, dtype, tuple(blocks), digest, distinct, "test")
    write(folder, manifest)
    return manifest
