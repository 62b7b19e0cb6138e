"""Write any `TensorSource` as a Hugging Face folder, e.g. a synthetic model for other systems.

Weights go to safetensors files of bounded size, `config.json` comes last: without it nothing
takes the folder for a model. Interrupted, it goes on with the first file that is not complete.
"""

import hashlib
import json
from pathlib import Path

from tpi.errors import ConfigError
from tpi.files import sync_folder, write_atomic
from tpi.model_config import CONFIG_FILE, ModelConfig, config_to_json
from tpi.weights.checkpoint import (
    INDEX_FILE,
    SINGLE_FILE,
    TensorSource,
    copy_tokenizer,
    expected_tensors,
    row_chunks,
)
from tpi.weights.dtypes import convert
from tpi.weights.journal import JOURNAL_FILE, Journal
from tpi.weights.layout import SAFETENSORS_DTYPES, align_up, tensor_bytes
from tpi.weights.newfile import Progress, WriteQueue, lock_folder, require_free_bytes, write_error

MAX_FILE_BYTES = 4 << 30
_SPARE_BYTES = 16 << 20
_Files = dict[str, dict[str, tuple[int, ...]]]  # file names, each with its tensors' shapes


def required_hf_bytes(config: ModelConfig, dtype: str) -> int:
    """Bytes of weights in the Hugging Face form; repeated layers are written in full."""
    return sum(tensor_bytes(dtype, shape) for shape in expected_tensors(config).values())


def write_hf_folder(
    source: TensorSource,
    folder: Path,
    *,
    dtype: str | None = None,
    progress: Progress | None = None,
    max_file_bytes: int = MAX_FILE_BYTES,
) -> int:
    """Write `config.json` and safetensors files that `from_pretrained` loads; return bytes written.

    The folder may hold an earlier, even unfinished, result of the same call. `progress` gets (bytes
    done, bytes in all) after every chunk. A file ends before it grows beyond `max_file_bytes`,
    but one tensor always fits.

    Raises:
        ConfigError: The folder holds something else.
        ResourceError: The disk has too little space, before anything is written, or ran full.
    """
    dtype = dtype or source.dtype
    files = _files(source, dtype, max_file_bytes)
    what = [
        config_to_json(source.config), dtype, source.distinct_layers, source.fingerprint,
        max_file_bytes,
    ]  # fmt: skip
    key = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
    with lock_folder(folder):
        foreign = (folder / CONFIG_FILE).exists() or any(folder.glob("*.safetensors"))
        if foreign and not (folder / JOURNAL_FILE).exists():
            raise ConfigError(f"{folder}: holds a checkpoint that was not made here; not touched")
        try:
            journal = Journal(folder, key, force=False)
            return _write_locked(source, folder, dtype, files, journal, progress)
        except OSError as exc:
            raise write_error(folder, exc) from exc


def _write_locked(
    source: TensorSource, folder: Path, dtype: str, files: _Files, journal: Journal,
    progress: Progress | None,
) -> int:  # fmt: skip
    headers = {name: _header(tensors, dtype) for name, tensors in files.items()}
    sizes = {
        name: len(headers[name]) + sum(tensor_bytes(dtype, s) for s in tensors.values())
        for name, tensors in files.items()
    }
    missing = [name for name in files if not journal.holds(name, sizes[name])]
    if not missing and journal.complete and (folder / CONFIG_FILE).exists():
        return 0
    todo, total = sum(sizes[name] for name in missing), sum(sizes.values())
    require_free_bytes(folder, todo + _SPARE_BYTES)
    (folder / CONFIG_FILE).unlink(missing_ok=True)
    with WriteQueue(progress, total - todo, total) as queue:
        for name in missing:
            file = queue.create(folder / name)
            queue.append(file, memoryview(headers[name]))
            for tensor in files[name]:
                for start, stop in row_chunks(source, tensor):
                    raw = source.read_rows(tensor, start, stop)
                    where = f"{source.description}: tensor {tensor}"
                    raw = convert(raw, source.tensor_dtype(tensor), dtype, where)
                    queue.append(file, raw.data.cast("B"))
            journal.enter({name: queue.finish(file).result()})
    sync_folder(folder)
    _write_small_files(source, folder, dtype, files)
    journal.finish()
    return todo


def _write_small_files(source: TensorSource, folder: Path, dtype: str, files: _Files) -> None:
    if SINGLE_FILE not in files:
        index = {
            "metadata": {"total_size": required_hf_bytes(source.config, dtype)},
            "weight_map": {tensor: name for name, tensors in files.items() for tensor in tensors},
        }
        write_atomic(folder / INDEX_FILE, json.dumps(index, indent=1).encode())
    copy_tokenizer(source, folder)
    config = config_to_json(source.config) | {"dtype": dtype}
    write_atomic(folder / CONFIG_FILE, json.dumps(config, indent=1).encode())


def _files(source: TensorSource, dtype: str, max_file_bytes: int) -> _Files:
    """Divide the tensors among files, in order of use."""
    groups: list[dict[str, tuple[int, ...]]] = [{}]
    num_bytes = 0
    for name, shape in expected_tensors(source.config).items():
        size = tensor_bytes(dtype, shape)
        if groups[-1] and num_bytes + size > max_file_bytes:
            groups.append({})
            num_bytes = 0
        groups[-1][name] = shape
        num_bytes += size
    if len(groups) == 1:
        return {SINGLE_FILE: groups[0]}
    return {
        f"model-{i:05d}-of-{len(groups):05d}.safetensors": group
        for i, group in enumerate(groups, start=1)
    }


def _header(tensors: dict[str, tuple[int, ...]], dtype: str) -> bytes:
    # Transformers refuses a file whose metadata does not say which framework wrote it.
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in tensors.items():
        start, end = end, end + tensor_bytes(dtype, shape)
        entries[name] = {
            "dtype": SAFETENSORS_DTYPES[dtype],
            "shape": list(shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    length = align_up(len(text), 8)
    return length.to_bytes(8, "little") + text.ljust(length, b" ")
