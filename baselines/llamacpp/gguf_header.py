"""The head of a GGUF file: what the model is, and where its tensors lie; made by `gguf`.

The package writes whole tensors only, so it is asked for the bytes before them and
`gguf_file.py` streams the rest.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from baselines.llamacpp.gguf_layout import ALIGN_BYTES, GgufTensor, gguf_architecture
from tpi.model_config import ModelConfig
from tpi.weights.dtypes import RAW_DTYPES
from tpi.weights.layout import align_up

_GGML_TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_LLAMA_TYPES = {"float32": "ALL_F32", "float16": "MOSTLY_F16", "bfloat16": "MOSTLY_BF16"}


def gguf_header(model: ModelConfig, tensors: Sequence[GgufTensor], file_type: str) -> bytes:
    """All bytes before the first tensor."""
    # Only here: the harness plans without it.
    import gguf

    writer = gguf.GGUFWriter(None, gguf_architecture(model))
    writer.add_file_type(gguf.LlamaFileType[_LLAMA_TYPES[file_type]])
    _describe(writer, model)
    for tensor in tensors:
        kind = gguf.GGMLQuantizationType[_GGML_TYPES[tensor.dtype]]
        dtype = RAW_DTYPES[tensor.dtype]
        writer.add_tensor_info(tensor.name, tensor.shape, dtype, tensor.num_bytes, kind)
    data = _written(writer)
    return data.ljust(align_up(len(data), ALIGN_BYTES), b"\0")


def _describe(writer: Any, model: ModelConfig) -> None:
    import gguf

    # Token ids go in and come out; a vocabulary of words is never needed.
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(model.vocab_size)
    writer.add_context_length(model.max_positions)
    writer.add_block_count(model.num_layers)
    writer.add_embedding_length(model.hidden_size)
    writer.add_feed_forward_length(model.ffn_size)
    writer.add_head_count(model.num_heads)
    writer.add_head_count_kv(model.num_kv_heads)
    writer.add_key_length(model.head_size)
    writer.add_value_length(model.head_size)
    writer.add_layer_norm_rms_eps(model.rms_eps)
    writer.add_rope_dimension_count(model.head_size)
    writer.add_rope_freq_base(model.rope_theta)
    if model.rope.kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(model.rope.factor)


def _written(writer: Any) -> bytes:
    with tempfile.TemporaryDirectory(prefix="tpi-gguf-") as folder:
        path = Path(folder) / "header"
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
        return path.read_bytes()
