"""Transformers as systems: on one device, and its own tensor parallelism."""

from dataclasses import dataclass, replace
from typing import Generic

from baselines.base import Opts, System
from baselines.cost_inputs import MATVEC_BPS, CostInputs, Prediction
from baselines.transformers.program import TransformersOptions
from baselines.transformers.program_tp import TransformersTpOptions, problems
from baselines.weight_formats import HF, WeightFormat
from tpi.model_config import DTYPE_BYTES, ModelConfig

BASE_BYTES = 450 << 20  # measured VmHWM before any weight: torch, transformers and accelerate
_GLOO_EXCHANGE_S = 2.5e-3  # what gloo's allreduce takes beyond ours on loopback, per device


@dataclass(frozen=True)
class LibrarySystem(System[Opts], Generic[Opts]):
    """A system that reads a Hugging Face folder and holds all weights in the compute dtype."""

    writer: str = "tpi.weights.hf_folder"
    packages: tuple[str, ...] = ("torch", "transformers")

    def predict(self, inputs: CostInputs, options: Opts) -> Prediction:
        """Predict the library on one device; its seconds are estimates."""
        compute = options.compute(inputs.dtype, inputs.max_tokens)
        threads = options.own_threads or inputs.threads
        inputs = replace(inputs, dtype=compute.dtype, threads=threads)
        weights = inputs.weight_bytes
        return Prediction(
            peak_bytes=(weights * self.copies(options) + BASE_BYTES,),
            read_bytes_per_step=0,
            start_s=2 * inputs.start_s() + inputs.stored_bytes / inputs.read_bps() + weights / 1e9,
            prefill_s=inputs.prefill_s(inputs.cores()),
            step_s=weights / (MATVEC_BPS * inputs.cores()),
        )

    def copies(self, _options: Opts) -> int:
        """How often the weights are in memory while it loads."""
        return 1

    def weight_format(
        self, _model: ModelConfig, _devices: int, _dtype: str, _options: Opts
    ) -> WeightFormat:
        """The checkpoint itself."""
        return HF


class TransformersSystem(LibrarySystem[TransformersOptions]):
    """Plain Transformers."""

    def copies(self, options: TransformersOptions) -> int:
        """Twice if the model is made before the checkpoint is read into it."""
        return 1 if options.low_cpu_mem_usage else 2


class TransformersTpSystem(LibrarySystem[TransformersTpOptions]):
    """Transformers' tensor parallelism over gloo."""

    def predict(self, inputs: CostInputs, options: TransformersTpOptions) -> Prediction:
        """Layers are split, embedding and head are not."""
        plain = super().predict(inputs, options)
        devices, weights = len(inputs.devices), inputs.weight_bytes
        ends = 2 * inputs.model.vocab_size * inputs.model.hidden_size * DTYPE_BYTES[inputs.dtype]
        cores = inputs.cores(devices)
        each_s = inputs.exchange_s(devices, inputs.hidden_bytes) + devices * _GLOO_EXCHANGE_S
        exchange_s = 2 * inputs.model.num_layers * each_s * (devices > 1)
        return Prediction(
            peak_bytes=((weights - ends) // devices + ends + BASE_BYTES,) * devices,
            read_bytes_per_step=0,
            start_s=2 * inputs.start_s(devices) + plain.start_s,
            prefill_s=inputs.prefill_s(cores) + exchange_s,
            step_s=weights / (MATVEC_BPS * cores) + exchange_s,
        )

    def problems(
        self, model: ModelConfig, devices: int, _dtype: str, _options: TransformersTpOptions
    ) -> list[str]:
        """Devices that do not divide the heads."""
        return problems(model, devices)


SYSTEMS = (
    TransformersSystem(
        "transformers",
        TransformersOptions,
        ("-m", "baselines.transformers.program"),
        "baselines.transformers.schedule:simulate",
        order=20,
    ),
    TransformersTpSystem(
        "transformers-tp",
        TransformersTpOptions,
        ("-m", "baselines.transformers.program_tp"),
        distributed=True,
        order=22,
    ),
)
