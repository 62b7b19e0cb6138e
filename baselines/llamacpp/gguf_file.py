"""Writes a model of any source as one GGUF file, which llama.cpp runs.

`make_gguf` is for the harness: a folder with `model.gguf`, complete or absent. `write_gguf` streams
plain numbers, a few MiB at a time. Quantized files are made of a plain one by llama.cpp's own
quantizer, in a process of its own. What the file holds is in `gguf_layout.py`.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from baselines.llamacpp.gguf_header import gguf_header
from baselines.llamacpp.gguf_layout import (
    ALIGN_BYTES,
    FILE_TYPES,
    MODEL_FILE,
    QUANTIZED,
    GgufTensor,
    file_rows,
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
from tpi.weights.dtypes import RawArray, convert
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

__all__ = ["MODEL_FILE", "make_gguf", "problems", "required_gguf_bytes", "write_gguf"]

_PLAIN_FILE = "plain.gguf"
_SPARE_BYTES = 16 << 20


def make_gguf(
    source: TensorSource, folder: Path, file_type: str, progress: Progress | None = None
) -> None:
    """Make `folder/model.gguf`, or leave it where an earlier call made the same.

    Args:
        source: What to write.
        folder: Made if missing.
        file_type: float32, float16, bfloat16, q8_0 or q4_0.
        progress: Called with (bytes done, bytes in all) every now and then.

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
            journal = Journal(folder, _key(source, file_type), force=False)
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

    Args:
        source: What to write.
        path: The file; its folder must exist.
        file_type: float32, float16 or bfloat16; norms and biases stay float32.
        progress: Called with (bytes done, bytes in all) after every chunk.

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


def _key(source: TensorSource, file_type: str) -> str:
    what = [
        config_to_json(source.config), file_type, source.dtype, source.distinct_layers,
        source.fingerprint,
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
