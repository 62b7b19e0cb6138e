"""llama.cpp as a system: it holds its GGUF file and a cache of keys and values."""

from baselines.base import System
from baselines.cost_inputs import MATVEC_BPS, CostInputs, Prediction
from baselines.llamacpp.options import LlamacppOptions
from baselines.weight_formats import WeightFormat
from tpi.model_config import ModelConfig

_BASE_BYTES = 150 << 20  # measured VmHWM before any weight


class LlamacppSystem(System[LlamacppOptions]):
    """llama.cpp on one device."""

    def predict(self, inputs: CostInputs, options: LlamacppOptions) -> Prediction:
        """Predict what one start and one request take; the seconds are estimates."""
        from baselines.llamacpp.gguf_layout import required_gguf_bytes  # loads NumPy

        file_type, model = options.file_type(inputs.dtype), inputs.model
        weights = required_gguf_bytes(model, file_type)
        # Measured: q4_0 is packed anew for the processor at the start, beside the mapped file.
        copies = 2 if file_type == "q4_0" and options.mmap else 1
        cache = 8 * model.num_layers * inputs.max_tokens * model.num_kv_heads * model.head_size
        return Prediction(
            peak_bytes=(copies * weights + cache + _BASE_BYTES,),
            read_bytes_per_step=0,
            start_s=1.0 + weights / inputs.read_bps(),
            prefill_s=inputs.prefill_s(inputs.cores()),
            step_s=weights / (MATVEC_BPS * inputs.cores()),
        )

    def problems(
        self, model: ModelConfig, _devices: int, dtype: str, options: LlamacppOptions
    ) -> list[str]:
        """Parts of the model that the library or the file's type does not support."""
        from baselines.llamacpp.gguf_layout import problems  # loads NumPy

        return problems(model, options.file_type(dtype))

    def weight_format(
        self, _model: ModelConfig, _devices: int, dtype: str, options: LlamacppOptions
    ) -> WeightFormat:
        """A GGUF file."""
        return WeightFormat("gguf", file_type=options.file_type(dtype))

    def is_exact(self, options: LlamacppOptions, dtype: str) -> bool:
        """Whether nothing is rounded, by quantization or by a dtype."""
        return options.quantization == "none" and super().is_exact(options, dtype)


SYSTEMS = (
    LlamacppSystem(
        "llamacpp",
        LlamacppOptions,
        ("-m", "baselines.llamacpp.program"),
        writer="baselines.llamacpp.gguf_file",
        packages=("llama_cpp", "gguf"),
        extra="llamacpp",
        distributions=("llama_cpp_python", "gguf"),
        order=50,
    ),
)
