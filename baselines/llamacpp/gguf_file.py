"""Writes a model of any source as one GGUF file, which llama.cpp runs.

`make_gguf` is for the harness: a folder with `model.gguf`, complete or absent. `write_gguf` streams
plain numbers, a few MiB at a time. Quantized files are made of a plain one by llama.cpp's own
quantizer, in a process of its own. What the file holds is in `gguf_layout.py`.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from baselines.llamacpp.gguf_layout import (
    ALIGN_BYTES,
    FILE_TYPES,
    MODEL_FILE,
    QUANTIZED,
    GgufTensor,
    file_rows,
    gguf_architecture,
    gguf_tensors,
    problems,
    required_gguf_bytes,
    rope_factors,
)
from baselines.llamacpp.gguf_quantize import quantize
from tpi.errors import ConfigError
from tpi.files import sync_folder
from tpi.model_config import ModelConfig, config_to_json
from tpi.weights.checkpoint import TensorSource, row_chunks
from tpi.weights.dtypes import RAW_DTYPES, RawArray, convert
from tpi.weights.journal import JOURNAL_FILE, Journal
from tpi.weights.layout import align_up
from tpi.weights.newfile import (
    TEMPORARY_SUFFIX,
    Progress,
    WriteQueue,
    lock_folder,
    require_free_bytes,
    write_error,
)

_GGML_TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_LLAMA_TYPES = {"float32": "ALL_F32", "float16": "MOSTLY_F16", "bfloat16": "MOSTLY_BF16"}
_PLAIN_FILE = "plain.gguf"
_SPARE_BYTES = 16 << 20


def make_gguf(
    source: TensorSource, folder: Path, file_type: str, progress: Progress | None = None
) -> None:
    """Make `folder/model.gguf`, or leave it where an earlier call made the same.

    Raises:
        ConfigError: llama.cpp cannot run such a file, or the folder holds something else.
        ResourceError: The disk has too little space, before anything is written, or ran full.
        WeightsError: The source cannot be read, or llama.cpp refused to quantize it.
    """
    _refuse(source.config, file_type)
    with lock_folder(folder):
        if (folder / MODEL_FILE).exists() and not (folder / JOURNAL_FILE).exists():
            raise ConfigError(f"{folder}: holds a model that was not made here; not touched")
        try:
            parts = [
                config_to_json(source.config), file_type, source.dtype, source.distinct_layers,
                source.fingerprint,
            ]  # fmt: skip
            key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
            journal = Journal(folder, key, force=False)
            if journal.complete and (folder / MODEL_FILE).exists():
                return
            if file_type in QUANTIZED:
                _make_quantized(source, folder, file_type, progress)
            else:
                require_free_bytes(
                    folder, required_gguf_bytes(source.config, file_type) + _SPARE_BYTES
                )
                write_gguf(source, folder / MODEL_FILE, file_type, progress)
            journal.finish()
        except OSError as exc:
            raise write_error(folder, exc) from exc


def write_gguf(
    source: TensorSource, path: Path, file_type: str, progress: Progress | None = None
) -> None:
    """Write one GGUF file of plain numbers under its name, whole or not at all.

    Norms and biases stay float32.

    Raises:
        ConfigError: llama.cpp cannot run such a file.
        WeightsError: The source cannot be read, or a number is too large for float16.
    """
    _refuse(source.config, file_type)
    if file_type in QUANTIZED:
        raise ConfigError(f"file type: expected a plain one, got {file_type}; use make_gguf")
    tensors = list(gguf_tensors(source.config, file_type))
    header = gguf_header(source.config, tensors, file_type)
    total = len(header) + sum(align_up(t.num_bytes, ALIGN_BYTES) for t in tensors)
    with WriteQueue(progress, total=total) as queue:
        file = queue.create(path)
        queue.append(file, memoryview(header))
        for tensor in tensors:
            for raw in _chunks(source, tensor):
                queue.append(file, raw.data.cast("B"))
            queue.pad(file, align_up(file.num_bytes, ALIGN_BYTES))
        queue.finish(file).result()
    sync_folder(path.parent)


def gguf_header(model: ModelConfig, tensors: Sequence[GgufTensor], file_type: str) -> bytes:
    """All bytes before the first tensor.

    The package `gguf` writes whole tensors only, so it is asked for the bytes before them.
    """
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


def _refuse(model: ModelConfig, file_type: str) -> None:
    if file_type not in FILE_TYPES:
        raise ConfigError(f"file type: expected one of {', '.join(FILE_TYPES)}, got {file_type!r}")
    if found := problems(model, file_type):
        raise ConfigError("; ".join(found))


def _chunks(source: TensorSource, tensor: GgufTensor) -> Iterator[RawArray]:
    """The tensor's numbers as they stand in the file, a few MiB (or one head) at a time."""
    if not tensor.source:
        yield rope_factors(source.config)
        return
    stored = source.tensor_dtype(tensor.source)
    where = f"{source.description}: tensor {tensor.source}"
    for start, stop in _ranges(source, tensor):
        raw = source.read_rows(tensor.source, start, stop)
        raw = convert(raw, stored, tensor.dtype, where)
        if tensor.head_size:
            in_order = np.empty_like(raw)
            in_order[file_rows(tensor, start, stop) - start] = raw
            raw = in_order
        yield raw


def _ranges(source: TensorSource, tensor: GgufTensor) -> Iterator[tuple[int, int]]:
    """Ranges of rows that cover the tensor; no head is divided whose rows change places."""
    if not tensor.head_size:
        yield from row_chunks(source, tensor.source)
        return
    rows, head = tensor.shape[0], tensor.head_size
    first = next(row_chunks(source, tensor.source))[1]
    step = max(first // head, 1) * head
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def _make_quantized(
    source: TensorSource, folder: Path, file_type: str, progress: Progress | None
) -> None:
    """Quantize a plain file of the source's own dtype, so that nothing is rounded twice."""
    plain, target = folder / _PLAIN_FILE, folder / MODEL_FILE
    plain_bytes = required_gguf_bytes(source.config, source.dtype)
    total = plain_bytes + required_gguf_bytes(source.config, file_type)
    require_free_bytes(folder, total + _SPARE_BYTES)

    def show(done: int) -> None:
        if progress is not None:
            progress(min(done, total), total)

    partial = target.with_name(target.name + TEMPORARY_SUFFIX)
    try:
        write_gguf(source, plain, source.dtype, lambda done, _: show(done))
        quantize(plain, partial, file_type, lambda done: show(plain_bytes + done))
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(target)
        sync_folder(folder)
    finally:
        plain.unlink(missing_ok=True)
        partial.unlink(missing_ok=True)
