"""Accelerate as systems: its disk offload of today, and as the paper met it."""

from dataclasses import dataclass, replace

from baselines.accelerate.program import Accelerate2024Options, AccelerateOptions
from baselines.cost_inputs import CostInputs, Prediction
from baselines.transformers.system import BASE_BYTES, LibrarySystem
from tpi.model_config import DTYPE_BYTES


@dataclass(frozen=True)
class AccelerateSystem(LibrarySystem[AccelerateOptions]):
    """Disk offload: what does not fit `max_memory` is read again for every pass."""

    packages: tuple[str, ...] = ("torch", "transformers", "accelerate")

    def predict(self, inputs: CostInputs, options: AccelerateOptions) -> Prediction:
        """Predict what one start and one request take."""
        stored = inputs.stored_bytes
        kept = min(inputs.weight_bytes, options.max_memory or 0)
        offloaded = stored - stored * kept // inputs.weight_bytes
        model = inputs.model
        rows = max(model.vocab_size, model.ffn_size, model.num_heads * model.head_size)
        # The largest matrix, in the compute dtype and once more as stored.
        item_bytes = DTYPE_BYTES[inputs.dtype] + DTYPE_BYTES[inputs.storage]
        peak_bytes = kept + rows * model.hidden_size * item_bytes + BASE_BYTES
        plain = replace(super().predict(inputs, options), peak_bytes=(peak_bytes,))
        return _reading(plain, inputs, offloaded)


@dataclass(frozen=True)
class Accelerate2024System(LibrarySystem[Accelerate2024Options]):
    """Everything is loaded, written out in the compute dtype, and read by each pass."""

    packages: tuple[str, ...] = ("torch", "transformers", "accelerate")

    def predict(self, inputs: CostInputs, options: Accelerate2024Options) -> Prediction:
        """Predict what one start and one request take."""
        plain, weights = super().predict(inputs, options), inputs.weight_bytes
        start_s = plain.start_s + weights / inputs.host.write_bps
        return _reading(replace(plain, start_s=start_s, scratch_bytes=weights), inputs, weights)


def _reading(plain: Prediction, inputs: CostInputs, num_bytes: int) -> Prediction:
    """The same prediction, with so many bytes read before each pass."""
    read_s = num_bytes / inputs.read_bps()
    return replace(
        plain,
        read_bytes_per_step=num_bytes,
        prefill_s=plain.prefill_s + read_s,
        step_s=plain.step_s + read_s,
    )


SYSTEMS = (
    AccelerateSystem(
        "accelerate",
        AccelerateOptions,
        ("-m", "baselines.accelerate.program"),
        "baselines.accelerate.schedule:accelerate",
        order=30,
    ),
    Accelerate2024System(
        "accelerate-2024",
        Accelerate2024Options,
        ("-m", "baselines.accelerate.program"),
        "baselines.accelerate.schedule:accelerate_2024",
        order=31,
    ),
)
