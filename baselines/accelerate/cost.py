"""What systems that are somebody else's library will need: Transformers, Accelerate, llama.cpp.

Their memory is that of their weights and what importing them was measured to take; their seconds
are estimates, as in `baselines/cost.py`. Pure.
"""

from collections.abc import Sequence

from baselines.cost_inputs import MATVEC_BPS, CostInputs, Prediction
from baselines.llamacpp.gguf_layout import required_gguf_bytes
from baselines.options import LlamacppOptions
from tpi.model_config import DTYPE_BYTES

_GLOO_EXCHANGE_S = 2.5e-3  # what gloo's allreduce takes beyond ours on loopback, per device
# Measured VmHWM before any weight, of importing torch, transformers and accelerate, or llama.cpp.
_TRANSFORMERS_BASE_BYTES = 450 << 20
_LLAMACPP_BASE_BYTES = 150 << 20


def transformers_cost(setting: CostInputs, *, full: bool = False) -> Prediction:
    """Predict Transformers on one device, which holds all weights in the compute dtype.

    `full`: twice, since the model is made before the checkpoint is read into it.
    """
    weights = setting.weight_bytes
    stored = setting.stored_bytes
    return Prediction(
        peak_bytes=(weights * (2 if full else 1) + _TRANSFORMERS_BASE_BYTES,),
        read_bytes_per_step=0,
        start_s=2 * setting.start_s() + stored / setting.read_bps() + weights / 1e9,
        prefill_s=setting.prefill_s(setting.cores()),
        step_s=weights / (MATVEC_BPS * setting.cores()),
    )


def accelerate_cost(setting: CostInputs, max_memory: int | None) -> Prediction:
    """Predict disk offload: what does not fit `max_memory` is read again for every pass."""
    plain, stored = transformers_cost(setting), setting.stored_bytes
    kept = min(setting.weight_bytes, max_memory or 0)
    offloaded = stored - stored * kept // setting.weight_bytes
    read_s = offloaded / setting.read_bps()
    return Prediction(
        peak_bytes=(kept + _largest_module(setting) + _TRANSFORMERS_BASE_BYTES,),
        read_bytes_per_step=offloaded,
        start_s=plain.start_s,
        prefill_s=plain.prefill_s + read_s,
        step_s=plain.step_s + read_s,
    )


def accelerate_2024_cost(setting: CostInputs) -> Prediction:
    """Predict loading everything, writing it out in the compute dtype, and reading it each pass."""
    plain, weights = transformers_cost(setting), setting.weight_bytes
    read_s = weights / setting.read_bps()
    return Prediction(
        peak_bytes=plain.peak_bytes,
        read_bytes_per_step=weights,
        start_s=plain.start_s + weights / setting.host.write_bps,
        prefill_s=plain.prefill_s + read_s,
        step_s=plain.step_s + read_s,
        scratch_bytes=weights,
    )


def transformers_tp_cost(setting: CostInputs) -> Prediction:
    """Predict Transformers' tensor parallelism: layers are split, embedding and head are not."""
    devices, weights = setting.devices, setting.weight_bytes
    ends = 2 * setting.model.vocab_size * setting.model.hidden_size * DTYPE_BYTES[setting.dtype]
    each = (weights - ends) // devices + ends + _TRANSFORMERS_BASE_BYTES
    cores = setting.cores(devices)
    each_s = setting.exchange_s(devices, setting.hidden_bytes) + devices * _GLOO_EXCHANGE_S
    exchange_s = 2 * setting.model.num_layers * each_s * (devices > 1)
    plain = transformers_cost(setting)
    return Prediction(
        peak_bytes=(each,) * devices,
        read_bytes_per_step=0,
        start_s=2 * setting.start_s(devices) + plain.start_s,
        prefill_s=setting.prefill_s(cores) + exchange_s,
        step_s=weights / (MATVEC_BPS * cores) + exchange_s,
    )


def llamacpp_cost(setting: CostInputs, options: LlamacppOptions) -> Prediction:
    """Predict llama.cpp: its file in memory, and a cache of keys and values."""
    file_type, model = options.file_type(setting.dtype), setting.model
    weights = required_gguf_bytes(model, file_type)
    # Measured: q4_0 is packed anew for the processor at the start, beside the mapped file.
    copies = 2 if file_type == "q4_0" and options.mmap else 1
    cache = 8 * model.num_layers * setting.max_tokens * model.num_kv_heads * model.head_size
    return Prediction(
        peak_bytes=(copies * weights + cache + _LLAMACPP_BASE_BYTES,),
        read_bytes_per_step=0,
        start_s=1.0 + weights / setting.read_bps(),
        prefill_s=setting.prefill_s(setting.cores()),
        step_s=weights / (MATVEC_BPS * setting.cores()),
    )


def _largest_module(setting: CostInputs) -> int:
    """The largest matrix, in the compute dtype and once more as stored."""
    model = setting.model
    rows: Sequence[int] = (model.vocab_size, model.ffn_size, model.num_heads * model.head_size)
    item = DTYPE_BYTES[setting.dtype] + DTYPE_BYTES[setting.storage]
    return max(rows) * model.hidden_size * item
