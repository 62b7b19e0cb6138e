"""Small shard folders for tests, written without the splitter; and a small model."""

import hashlib
from pathlib import Path

import numpy as np

from tpi.config import ModelConfig
from tpi.weights.blockfile import BlockEntry, Manifest, make_layout, make_plan_digest
from tpi.weights.blockfile import write_manifest as write
from tpi.weights.shard import make_shard_plan, rank_blocks

NUMPY_WORDS = {"float32": "<u4", "float16": "<u2", "bfloat16": "<u2"}


def small_config(**changes) -> ModelConfig:
    numbers = {
        "architecture": "llama", "num_layers": 2, "hidden_size": 16, "num_heads": 4,
        "num_kv_heads": 2, "head_size": 4, "ffn_size": 24, "vocab_size": 40,
        "max_positions": 64, "rms_eps": 1e-5, "rope_theta": 1e4,
    }  # fmt: skip
    return ModelConfig(**{**numbers, **changes})


def block_bytes(tensors, dtype: str, seed: int = 0) -> bytes:
    """A block file with random finite values; `tensors` as `make_layout` takes them."""
    layout = make_layout(tensors)
    data = bytearray(layout.header.ljust(layout.num_bytes, b"\0"))
    rng = np.random.default_rng(seed)
    for place in layout.places:
        words = np.frombuffer(data, NUMPY_WORDS[dtype])[
            place.offset // (place.num_bytes // max(np.prod(place.shape, dtype=int), 1) or 1) :
        ][: int(np.prod(place.shape))]
        values = rng.standard_normal(words.size).astype(np.float32)
        if dtype == "bfloat16":
            words[:] = values.view(np.uint32) >> 16
        elif dtype == "float16":
            words[:] = values.astype(np.float16).view(np.uint16)
        else:
            words[:] = values.view(np.uint32)
    return bytes(data)


def write_shard_folder(
    folder: Path, config: ModelConfig, *, world_size: int = 2, rank: int = 0,
    dtype: str = "float32", weights=None, distinct_layers: int | None = None,
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
            path.write_bytes(block_bytes(spec.layout_input(), dtype, seed))
        data = path.read_bytes()
        layout = make_layout(spec.layout_input())
        digest = hashlib.sha256(data).hexdigest()
        blocks.append(BlockEntry(spec.id, path, len(data), digest, layout.places))
    digest = make_plan_digest(config, plan, dtype, distinct, "test")
    manifest = Manifest(config, plan, rank, dtype, tuple(blocks), digest, distinct, "test")
    write(folder, manifest)
    return manifest
