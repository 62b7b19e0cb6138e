"""Obtains the weights a plan needs: shards for `tpi`, the Hugging Face form for the others.

A set is found again by model, seed, storage dtype, distinct layers, and for shards the number of
devices and their shares. Writing is resumed where it was interrupted, and a
set that is complete is not written again (`tpi/weights/split.py`).
"""

import hashlib
import json
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from baselines.llamacpp.gguf_file import make_gguf
from baselines.llamacpp.gguf_layout import MODEL_FILE
from baselines.llamacpp.gguf_source import GgufSource
from baselines.weight_formats import HF, WeightFormat, reference_format
from harness.plan.types import Plan, SystemPlan
from harness.progress.live import Live
from tpi.errors import ConfigError
from tpi.model_config import config_to_json, preset_names
from tpi.units import format_bytes
from tpi.weights import direct_io
from tpi.weights.checkpoint import TensorSource, open_checkpoint
from tpi.weights.hf_folder import write_hf_folder
from tpi.weights.newfile import Progress
from tpi.weights.split import split
from tpi.weights.synthetic import SyntheticSource

# Must stay free on the disk beside the weights: for records, logs, other users.
_SPARE_BYTES = 256 << 20
# Read to measure the disk's own rate; takes about a second.
_RATE_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class WeightSet:
    """Where the weights of a plan are or will be.

    Attributes:
        identity: Names the numbers in it, for run ids and caches.
        base: Folder that holds all forms that are made here.
        hf: Folder in Hugging Face form, whether it is needed or not.
        folders: Of every form that the plan needs.
        missing: Bytes of it that are still to be written; 0 where it is complete.
    """

    identity: str
    base: Path
    hf: Path
    folders: Mapping[WeightFormat, Path]
    missing: Mapping[WeightFormat, int]

    @property
    def to_write(self) -> int:
        """Bytes that are still missing on disk."""
        return sum(self.missing.values())

    def reference_dir(self, system: SystemPlan) -> Path:
        """What the reference reads to check a system."""
        form = reference_format(system.form)
        return self.hf if form == HF else self.folders[form]

    def model_dirs(self, system: SystemPlan) -> tuple[Path, ...]:
        """What each rank of a system reads: its own shards, or the same folder for all."""
        folder, plan = self.folders[system.form], system.form.shard_plan
        if plan is None:
            return (folder,) * system.world_size
        if plan.world_size == system.world_size:
            return tuple(folder / f"rank-{rank}" for rank in range(plan.world_size))
        return (folder / "rank-0",) * system.world_size


def locate(plan: Plan) -> WeightSet:
    """Find the weights of a plan, or say where they go; a simulation has none."""
    config = plan.config
    if plan.is_simulated:
        return WeightSet("", Path(), Path(), {}, {})
    source = make_source(plan)
    shape = json.dumps(config_to_json(plan.model), sort_keys=True)
    if plan.synthetic:
        name = f"{config.model.name}-s{config.weights.seed}-{plan.storage}-k{plan.distinct_layers}"
        if config.model.name not in preset_names():
            name = f"{name}-{_digest(shape)}"
        base = Path(config.weights.dir) / name
        hf = base / HF.folder_name
    else:
        hf = Path(config.model.path or "")
        base = Path(config.weights.dir) / f"{hf.resolve().name}-{_digest(source.fingerprint)}"
    folders = {form: hf if form == HF else base / form.folder_name for form in plan.forms}
    return WeightSet(
        identity=f"{source.fingerprint} {plan.storage} {plan.distinct_layers} {shape}",
        base=base,
        hf=hf,
        folders=folders,
        missing={
            form: 0 if _is_complete(form, folders[form]) else num_bytes
            for form, num_bytes in plan.forms.items()
        },
    )


def _is_complete(form: WeightFormat, folder: Path) -> bool:
    """Whether the file that is written last is there."""
    if form.shard_plan is not None:
        ranks = range(form.shard_plan.world_size)
        return all((folder / f"rank-{r}/manifest.json").exists() for r in ranks)
    return (folder / (MODEL_FILE if form.kind == "gguf" else "config.json")).exists()


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


def check_space(plan: Plan, weights: WeightSet) -> None:
    """Refuse to write what does not fit; raises ConfigError that says what to change."""
    scratch = max((_scratch_bytes(plan, s) for s in plan.runnable), default=0)
    needed, free_disk = weights.to_write + scratch, plan.host.free_disk
    if needed and needed + _SPARE_BYTES > free_disk:
        raise ConfigError(
            f"weights.dir: {plan.config.weights.dir}/ needs"
            f" {format_bytes(needed + _SPARE_BYTES)} more, {format_bytes(free_disk)} are"
            " free; lower weights.max_bytes, or set weights.dir to another disk"
        )


def _scratch_bytes(plan: Plan, system: SystemPlan) -> int:
    """Disk that a system takes while it runs: its own files, and copies for single devices."""
    is_copied = plan.is_emulated and system.is_copied
    copies = system.world_size * plan.forms.get(system.form, 0) if is_copied else 0
    return system.cost.scratch_bytes + copies


def obtain(plan: Plan, weights: WeightSet, live: Live) -> None:
    """Write what is missing; raises TpiError if the source is unreadable or the disk full."""
    source = make_source(plan)
    # Complete sets go through the same calls, which quickly check that they are the right ones.
    for form, folder in weights.folders.items():
        if form == HF and not plan.synthetic:
            continue  # the user's own folder
        with live.writing(form.words) if weights.missing[form] else nullcontext() as progress:
            _write(form, source, folder, plan.storage, progress)


def _write(
    form: WeightFormat, source: TensorSource, folder: Path, storage: str, progress: Progress | None
) -> None:
    if form.shard_plan is not None:
        split(source, form.shard_plan, folder, dtype=storage, progress=progress)
    elif form.kind == "gguf":
        make_gguf(source, folder, form.file_type, progress)
    elif form.kind == "dequantized":
        gguf = (
            folder.with_name(WeightFormat("gguf", file_type=form.file_type).folder_name)
            / MODEL_FILE
        )
        write_hf_folder(GgufSource(gguf, source.config), folder, progress=progress)
    else:
        write_hf_folder(source, folder, progress=progress)


def read_rate_bps(weights: WeightSet) -> float | None:
    """The disk's own rate over some of the files, past the page cache; None if they are small."""
    chosen, num_bytes = [], 0
    for path in sorted(p for f in weights.folders.values() for p in f.rglob("*.safetensors")):
        if num_bytes < _RATE_BYTES:
            chosen.append(path)
            num_bytes += path.stat().st_size
    return direct_io.read_rate_bps(chosen) if num_bytes >= _RATE_BYTES else None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
