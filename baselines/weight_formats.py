"""The forms in which one set of weights is stored on disk.

The numbers are the same in all: block files of shards (`tpi`, its kin, Galaxy, and the pipeline,
whose devices read their layers from the shards of one device), a Hugging Face folder, a GGUF file.
Pure; `weights.py` makes them.
"""

import functools
from dataclasses import dataclass

from testbed.host.rates import Host
from tpi.model_config import DTYPES, ModelConfig
from tpi.weights.shard import ShardPlan

_HASH_BPS = 0.8e9  # SHA-256, once for new shards


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """One form; only shards have a `shard_plan`, only GGUF and its numbers a `file_type`.

    Attributes:
        kind: "shards", "hf", "gguf", or "dequantized": the numbers of a GGUF file, for reference.
    """

    kind: str
    shard_plan: ShardPlan | None = None
    file_type: str = ""

    @property
    def words(self) -> str:
        """Its name for people."""
        if self.shard_plan is not None:
            return f"shards for devices={self.shard_plan.world_size}"
        if self.kind == "gguf":
            return f"GGUF file of {self.file_type}"
        of = f", as {self.file_type} rounds them" if self.file_type else ""
        return f"weights in Hugging Face form{of}"

    @property
    def folder_name(self) -> str:
        """Folder below that of the weights, another for every form."""
        if self.shard_plan is not None:
            even = len(set(self.shard_plan.weights)) == 1
            mark = "" if even else f"-{self.shard_plan.digest()[:8]}"
            return f"n{self.shard_plan.world_size}{mark}"
        return f"{self.kind}-{self.file_type}" if self.file_type else self.kind


HF = WeightFormat("hf")


def reference_format(form: WeightFormat) -> WeightFormat:
    """The form that the reference reads to check a system that reads `form`.

    A quantized file holds other numbers than the checkpoint, and no honest arithmetic gives the
    checkpoint's tokens from them; so the reference is Transformers on the file's own numbers.
    """
    is_quantized = form.kind == "gguf" and form.file_type not in DTYPES
    return WeightFormat("dequantized", file_type=form.file_type) if is_quantized else HF


@functools.lru_cache(maxsize=64)  # asked again for every cut that a plan considers
def format_num_bytes(
    form: WeightFormat, model: ModelConfig, storage: str, distinct_layers: int
) -> int:
    """Bytes that a form takes on disk; only shards keep repeated layers once."""
    # These load NumPy, which the systems' own modules do without.
    from baselines.llamacpp.gguf_layout import required_gguf_bytes
    from tpi.weights.hf_folder import required_hf_bytes
    from tpi.weights.split import required_bytes

    if form.shard_plan is not None:
        return required_bytes(model, form.shard_plan, storage, distinct_layers)
    if form.kind == "gguf":
        return required_gguf_bytes(model, form.file_type)
    if form.kind == "dequantized":
        return required_hf_bytes(model, "float32")
    return required_hf_bytes(model, storage)


def most_distinct_layers(model: ModelConfig, plan: ShardPlan, dtype: str, max_bytes: int) -> int:
    """How many layers can be stored in `max_bytes`; 0 if not even one."""
    from tpi.weights.split import required_bytes

    one = required_bytes(model, plan, dtype, 1)
    if model.num_layers == 1:
        return int(one <= max_bytes)
    per_layer = (required_bytes(model, plan, dtype) - one) // (model.num_layers - 1)
    return max(0, min(model.num_layers, 1 + (max_bytes - one) // per_layer))


def write_seconds(num_bytes: int, host: Host) -> float:
    """Seconds to make weights, and to hash them once."""
    return num_bytes / min(host.write_bps, 0.5e9) + num_bytes / min(host.read_bps, _HASH_BPS)
