"""Obtains the weights a plan needs: shards for `tpi`, the Hugging Face form for the others.

A set is found again by what decides its bytes: model, seed, storage dtype, distinct layers, and for
shards the number of devices and their shares. Writing is resumed where it was interrupted, and a
set that is complete is not written again (`tpi/weights/split.py`). Read `locate` first.
"""

import hashlib
import json
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from harness.live import Live
from harness.plan import Plan
from tpi.config import config_to_json, preset_names
from tpi.errors import ConfigError
from tpi.units import format_bytes
from tpi.weights import direct_io
from tpi.weights.checkpoint import TensorSource, open_checkpoint
from tpi.weights.hf_folder import write_hf_folder
from tpi.weights.split import split
from tpi.weights.synthetic import SyntheticSource

# What must stay free on the disk beside the weights: records, logs, other people.
_SPARE_BYTES = 256 << 20
# What is read to know the disk's own rate; about a second.
_RATE_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class WeightSet:
    """Where the weights of a plan are or will be; either form may not be needed.

    Attributes:
        identity: What decides the numbers in it, for run ids and caches.
        base: Folder that holds all forms that are made here.
        shards: Folder of `rank-0` ...
        hf: Folder in Hugging Face form.
        shards_bytes, hf_bytes: Still to be written.
    """

    identity: str
    base: Path
    shards: Path
    hf: Path
    shards_bytes: int
    hf_bytes: int

    @property
    def to_write(self) -> int:
        """Bytes that are still missing on disk."""
        return self.shards_bytes + self.hf_bytes

    def rank_folders(self, world_size: int) -> tuple[Path, ...]:
        """The shard folder of every rank."""
        return tuple(self.shards / f"rank-{rank}" for rank in range(world_size))


def locate(plan: Plan) -> WeightSet:
    """Find the weights of a plan, or say where they go; nothing is written."""
    config = plan.config
    source = make_source(plan)
    shape = json.dumps(config_to_json(plan.model), sort_keys=True)
    if plan.synthetic:
        name = f"{config.model.name}-s{config.weights.seed}-{plan.storage}-k{plan.distinct_layers}"
        if config.model.name not in preset_names():
            name = f"{name}-{_digest(shape)}"
        base = Path(config.weights.dir) / name
        hf = base / "hf"
    else:
        hf = Path(config.model.path or "")
        base = Path(config.weights.dir) / f"{hf.resolve().name}-{_digest(source.fingerprint)}"
    even = len(set(plan.shard_plan.weights)) == 1
    shards = base / f"n{config.devices}{'' if even else '-' + plan.shard_plan.digest()[:8]}"
    has_shards = all((shards / f"rank-{r}/manifest.json").exists() for r in range(config.devices))
    return WeightSet(
        identity=f"{source.fingerprint} {plan.storage} {plan.distinct_layers} {shape}",
        base=base,
        shards=shards,
        hf=hf,
        shards_bytes=0 if has_shards else plan.shards_bytes,
        hf_bytes=0 if (hf / "config.json").exists() else plan.hf_bytes,
    )


def make_source(plan: Plan) -> TensorSource:
    """Where the numbers come from: a folder, or a seed."""
    if not plan.synthetic:
        return open_checkpoint(Path(plan.config.model.path or ""))
    return SyntheticSource(
        plan.model,
        seed=plan.config.weights.seed,
        dtype=plan.storage,
        distinct_layers=plan.distinct_layers,
    )


def check_space(plan: Plan, weights: WeightSet, free_disk: int) -> None:
    """Refuse to write what does not fit.

    Raises:
        ConfigError: With the bytes needed and free, and what to change.
    """
    if weights.to_write and weights.to_write + _SPARE_BYTES > free_disk:
        raise ConfigError(
            f"weights.dir: {plan.config.weights.dir}/ needs"
            f" {format_bytes(weights.to_write + _SPARE_BYTES)} more, {format_bytes(free_disk)} are"
            " free; lower weights.max_bytes, or set weights.dir to another disk"
        )


def obtain(plan: Plan, weights: WeightSet, live: Live) -> None:
    """Write what is missing, showing how far it is.

    Raises:
        TpiError: The source cannot be read, or the disk ran full.
    """
    source = make_source(plan)
    # Complete sets go through the same calls: they look whether it is the right one, quickly.
    if plan.shards_bytes:
        what = f"shards for devices={plan.shard_plan.world_size}"
        with live.writing(what) if weights.shards_bytes else nullcontext() as progress:
            split(source, plan.shard_plan, weights.shards, dtype=plan.storage, progress=progress)
    if plan.hf_bytes:
        what = "weights in Hugging Face form"
        with live.writing(what) if weights.hf_bytes else nullcontext() as progress:
            write_hf_folder(source, weights.hf, progress=progress)


def read_rate_bps(weights: WeightSet) -> float | None:
    """The disk's own rate over some of the shards, past the page cache; None if they are small."""
    chosen, num_bytes = [], 0
    for path in sorted(weights.shards.glob("rank-*/*.safetensors")):
        if num_bytes < _RATE_BYTES:
            chosen.append(path)
            num_bytes += path.stat().st_size
    return direct_io.read_rate_bps(chosen) if num_bytes >= _RATE_BYTES else None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
