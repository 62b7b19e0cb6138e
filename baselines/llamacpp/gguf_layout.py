"""What a GGUF file of a model holds: tensors, their names, shapes and bytes. Pure, no I/O.

llama.cpp has its own tensor names and keeps norms and biases in float32. Its "llama" models rotate
neighbouring elements of a head, where Hugging Face rotates the two halves, so the rows of queries
and keys change places. `gguf_tensors` lists a file of plain numbers, `required_gguf_bytes`
knows the quantized ones too, and `problems` says what llama.cpp cannot do.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from tpi.model_config import DTYPE_BYTES, ModelConfig
from tpi.weights.checkpoint import expected_tensors, split_layer_name
from tpi.weights.dtypes import RawArray
from tpi.weights.layout import align_up

QUANTIZED = ("q8_0", "q4_0")
FileType = Literal["float32", "float16", "bfloat16", "q8_0", "q4_0"]
FILE_TYPES = get_args(FileType)
MODEL_FILE = "model.gguf"
ROPE_FACTORS = "rope_freqs.weight"
ALIGN_BYTES = 32
# A block is this many elements of a row, stored in so many bytes (ggml-common.h).
_BLOCKS = {"q8_0": (32, 34), "q4_0": (32, 18), "q6_k": (256, 210)}
_MAX_LAYERS = 512  # LLAMA_MAX_LAYERS
_METADATA_BYTES = 700  # measured in 74 files: 632 to 781, padding included
_OUTSIDE = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
_IN_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor of a file of plain numbers.

    Attributes:
        source: Its Hugging Face name; empty for what is computed.
        head_size: Rows of a head, which change places; 0 where none do.
    """

    name: str
    source: str
    shape: tuple[int, ...]
    dtype: str
    head_size: int = 0

    @property
    def num_bytes(self) -> int:
        """Bytes of it, without padding."""
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]


def gguf_architecture(model: ModelConfig) -> str:
    """What llama.cpp calls it; Mistral's models are "llama" there."""
    return "llama" if model.architecture == "mistral" else model.architecture


def gguf_tensors(model: ModelConfig, dtype: str) -> Iterator[GgufTensor]:
    """All tensors of a file of `dtype`, in order of use."""
    if model.rope.kind == "llama3":
        yield GgufTensor(ROPE_FACTORS, "", (model.head_size // 2,), "float32")
    turned = gguf_architecture(model) == "llama"
    for source, shape in expected_tensors(model).items():
        name = gguf_name(source)
        is_turned = turned and name.split(".")[-2] in ("attn_q", "attn_k")
        yield GgufTensor(
            name=name,
            source=source,
            shape=shape,
            dtype="float32" if len(shape) == 1 else dtype,
            head_size=model.head_size if is_turned else 0,
        )


def gguf_name(source: str) -> str:
    """The tensor's name in llama.cpp."""
    layer, rest = split_layer_name(source)
    stem, _, kind = rest.rpartition(".")
    return f"{_OUTSIDE[stem]}.{kind}" if layer is None else f"blk.{layer}.{_IN_LAYER[stem]}.{kind}"


def file_rows(tensor: GgufTensor, start: int, stop: int) -> NDArray[np.int64]:
    """Where Hugging Face's rows [start, stop) stand in the file.

    Row j of the first half of a head of E rows stands at 2 * j, of the second at 2 * j + 1.
    """
    rows = np.arange(start, stop)
    if not tensor.head_size:
        return rows
    head, row = np.divmod(rows, tensor.head_size)
    half, place = np.divmod(row, tensor.head_size // 2)
    turned: NDArray[np.int64] = head * tensor.head_size + 2 * place + half
    return turned


def rope_factors(model: ModelConfig) -> RawArray:
    """By how much llama3 scaling divides each pair's frequency.

    Shapes: (E/2,) float32.
    Source: transformers/modeling_rope_utils.py (5.23).
    """
    rope, half = model.rope, model.head_size // 2
    wavelengths = 2 * math.pi * model.rope_theta ** (np.arange(half) / half)
    smooth = (rope.original_max_positions / wavelengths - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor
    )
    kept = np.clip(smooth, 0.0, 1.0)  # 0: a long wave, slowed in full; 1: a short one
    return (1 / ((1 - kept) / rope.factor + kept)).astype(np.float32)


def required_gguf_bytes(model: ModelConfig, file_type: str) -> int:
    """Bytes of the file, within 1 %; repeated layers are written in full."""
    dtype = "float32" if file_type in QUANTIZED else file_type
    tensors = list(gguf_tensors(model, dtype))
    entries = sum(24 + len(t.name) + 8 * len(t.shape) for t in tensors)
    data = sum(align_up(_stored_bytes(model, tensor, file_type), ALIGN_BYTES) for tensor in tensors)
    return _METADATA_BYTES + entries + data


def problems(model: ModelConfig, file_type: str = "float32") -> list[str]:
    """Why llama.cpp cannot run this model from a file of this type; empty if it can."""
    found = []
    name = gguf_architecture(model)
    if name != "llama" and model.out_bias:
        found.append(f"llama.cpp has no bias after attention in its {name} models")
    if name != "llama" and model.rope.kind == "llama3":
        found.append(f"llama.cpp has no llama3 rope scaling in its {name} models")
    if model.num_layers > _MAX_LAYERS:
        found.append(f"llama.cpp runs up to {_MAX_LAYERS} layers, the model has {model.num_layers}")
    if file_type in QUANTIZED:
        widths = {
            "hidden_size": model.hidden_size,
            "heads * head_dim": model.num_heads * model.head_size,
            "intermediate_size": model.ffn_size,
        }
        block = _BLOCKS[file_type][0]
        found += [
            f"{file_type} needs rows of a multiple of {block}, {what} is {width}"
            for what, width in widths.items()
            if width % block
        ]
    return found


def _stored_bytes(model: ModelConfig, tensor: GgufTensor, file_type: str) -> int:
    """Bytes of a tensor in the file, as llama.cpp's quantizer chooses by default."""
    if file_type not in QUANTIZED or len(tensor.shape) == 1:
        return tensor.num_bytes
    head = "token_embd.weight" if model.tied_embeddings else "output.weight"
    kind = file_type
    if tensor.name == head and file_type == "q4_0":  # the head is worth more bits
        kind = "q8_0" if tensor.shape[1] % _BLOCKS["q6_k"][0] else "q6_k"
    elements, num_bytes = _BLOCKS[kind]
    return math.prod(tensor.shape) // elements * num_bytes
