"""Checkpoints as something that tensors are read from, a chunk of rows at a time.

`HFCheckpoint` is the `TensorSource` of a Hugging Face folder; `synthetic.py` has another.
`open_checkpoint` checks files, headers, names, shapes and dtypes. Weights are read with `pread`,
never mapped, since mapped pages count as memory. Nothing in a folder is executed.
"""

import hashlib
import itertools
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
from msgspec import Struct

from tpi.decode import decode, shown
from tpi.errors import WeightsError
from tpi.files import ClosedAtExit, open_regular, read_full, read_small_file, write_atomic
from tpi.model_config import DTYPE_BYTES, ModelConfig, load_config
from tpi.weights.dtypes import RAW_DTYPES, RawArray
from tpi.weights.layout import SAFETENSORS_DTYPES, TensorPlace
from tpi.weights.safetensors_header import read_header
from tpi.weights.shard import make_shard_plan, rank_blocks

log = logging.getLogger(__name__)

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
# As large as the step that splitting and comparing take; small beside a process's own memory.
CHUNK_BYTES = 16 << 20
_MAX_INDEX_BYTES = 32 << 20
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
_MAX_TOKENIZER_BYTES = 256 << 20
_PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}
_LAYER_NAME = re.compile(r"model\.layers\.(\d+)\.(.+)")
_EMBED, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_FROM_SAFETENSORS = {theirs: ours for ours, theirs in SAFETENSORS_DTYPES.items()}


class TensorSource(Protocol):
    """Where a model's tensors come from, by their Hugging Face names."""

    config: ModelConfig
    dtype: str  # the storage dtype to keep unless another is asked for
    distinct_layers: int  # layers l and l % distinct_layers hold the same numbers
    description: str  # for people: a path, or what is synthetic
    fingerprint: str  # the same for the same numbers, else another (as far as a sample shows)
    tokenizer_files: tuple[Path, ...]  # what the master needs to turn text into ids; may be none

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""

    def tensor_dtype(self, name: str) -> str:
        """Storage dtype of a tensor; may differ from `dtype`."""

    def read_rows(self, name: str, start: int, stop: int) -> RawArray:
        """Rows [start, stop) of a matrix, or elements of a vector, in `tensor_dtype`, raw."""


def expected_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a checkpoint of this model must hold, in order of use."""
    blocks = rank_blocks(config, make_shard_plan(config, 1), 0, config.dtype)
    return {t.source.name: t.source.shape for block in blocks for t in block.tensors}


def split_layer_name(name: str) -> tuple[int | None, str]:
    """("model.layers.3.x") -> (3, "x"); a tensor outside of the layers -> (None, name)."""
    match = _LAYER_NAME.fullmatch(name)
    return (int(match[1]), match[2]) if match else (None, name)


def row_chunks(
    source: TensorSource, name: str, start: int = 0, stop: int | None = None
) -> Iterator[tuple[int, int]]:
    """Ranges of rows that cover [start, stop) in order, each of at most 16 MiB (or one row)."""
    shape = source.shape(name)
    stop = shape[0] if stop is None else stop
    row_bytes = int(np.prod(shape[1:], dtype=np.int64)) * DTYPE_BYTES[source.tensor_dtype(name)]
    step = max(CHUNK_BYTES // max(row_bytes, 1), 1)
    for first in range(start, stop, step):
        yield first, min(first + step, stop)


class HFCheckpoint(ClosedAtExit):
    """A Hugging Face folder, open; made by `open_checkpoint`. A context manager."""

    def __init__(self, folder: Path, config: ModelConfig) -> None:
        self.folder = folder
        self.config = config
        self.description = str(folder)
        self.distinct_layers = config.num_layers  # all count as different
        paths = (folder / name for name in TOKENIZER_FILES)
        self.tokenizer_files = tuple(path for path in paths if path.exists())
        self._fds: dict[Path, int] = {}
        self._entries: dict[str, tuple[Path, TensorPlace]] = {}
        try:
            self._open_files()
            self._untie_if_different()
            shapes = expected_tensors(self.config)
            self._check(shapes)
            self._names = tuple(shapes)
            self.dtype = self._most_common_dtype()
            self.fingerprint = self._make_fingerprint()
        except BaseException:
            self.close()
            raise

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor by its name."""
        return self._find(name)[1].shape

    def tensor_dtype(self, name: str) -> str:
        """Storage dtype of a tensor."""
        return _FROM_SAFETENSORS[self._find(name)[1].dtype]

    def read_rows(self, name: str, start: int, stop: int) -> RawArray:
        """Read rows [start, stop) of a tensor (elements, for a vector).

        Shapes: (stop - start, columns) or (stop - start,), raw storage of `tensor_dtype(name)`.

        Raises:
            WeightsError: The file ends early or cannot be read.
        """
        path, entry = self._find(name)
        raw = np.empty((stop - start, *entry.shape[1:]), RAW_DTYPES[self.tensor_dtype(name)])
        row_bytes = raw.nbytes // max(stop - start, 1)
        self._read(path, entry.offset + start * row_bytes, raw.data.cast("B"), name)
        return raw

    def close(self) -> None:
        """Close all files; may be called twice."""
        while self._fds:
            os.close(self._fds.popitem()[1])

    def _open_files(self) -> None:
        for path, names in _weight_files(self.folder).items():
            fd = open_regular(path, WeightsError, follow=True)
            self._fds[path] = fd
            header = read_header(fd, str(path))
            wanted = header if names is None else {n: header[n] for n in names if n in header}
            self._entries |= {name: (path, entry) for name, entry in wanted.items()}

    def _find(self, name: str) -> tuple[Path, TensorPlace]:
        if name == _EMBED and name not in self._entries and self.config.tied_embeddings:
            name = _HEAD  # tied, and saved under the other of its two names
        if name not in self._entries:
            raise WeightsError(f"{self.folder}: tensor {name} is missing; download it again")
        return self._entries[name]

    def _check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        for name, shape in shapes.items():
            path, entry = self._find(name)
            if entry.dtype not in _FROM_SAFETENSORS:
                raise WeightsError(
                    f"{path}: tensor {name}: dtype {entry.dtype} is not supported (quantised?)"
                    "; use the float32, float16 or bfloat16 model"
                )
            if entry.shape != shape:
                raise WeightsError(
                    f"{path}: tensor {name}: expected shape {list(shape)} by config.json, "
                    f"got {list(entry.shape)}"
                )
        if extra := self._entries.keys() - shapes.keys():
            log.info("%s: ignores %d tensors, e.g. %s", self.folder, len(extra), min(extra))

    def _untie_if_different(self) -> None:
        """Believe the weights where config.json says tied and both are there, as Transformers."""
        names = (_EMBED, _HEAD)
        if not self.config.tied_embeddings or not self._entries.keys() >= set(names):
            return
        same = replace(self.config, tied_embeddings=False)
        self._check({name: expected_tensors(same)[name] for name in names})
        tied = self.tensor_dtype(_EMBED) == self.tensor_dtype(_HEAD) and all(
            np.array_equal(self.read_rows(_EMBED, *rows), self.read_rows(_HEAD, *rows))
            for rows in row_chunks(self, _EMBED)
        )
        if not tied:
            log.warning(
                "%s: config.json ties the embeddings but %s differs from %s: not tied",
                self.folder, _HEAD, _EMBED,
            )  # fmt: skip
            self.config = same

    def _most_common_dtype(self) -> str:
        """The dtype that most bytes have; the others are converted when blocks are written."""
        count: Counter[str] = Counter()
        for name in self._names:
            count[self.tensor_dtype(name)] += self._find(name)[1].num_bytes
        dtype = count.most_common(1)[0][0]
        if "float32" in count and dtype != "float32":
            log.warning("%s: some tensors are float32 and will be %s", self.folder, dtype)
        return dtype

    def _make_fingerprint(self) -> str:
        """Hash the config, and of each tensor name, dtype, shape and the bytes at both ends."""
        sha = hashlib.sha256(repr(self.config).encode())
        for name in self._names:
            path, entry = self._find(name)
            sha.update(f"{name} {entry.dtype} {entry.shape}".encode())
            sample = bytearray(min(512, entry.num_bytes))
            for start in (entry.offset, entry.offset + entry.num_bytes - len(sample)):
                self._read(path, start, memoryview(sample), name)
                sha.update(sample)
        return f"checkpoint {sha.hexdigest()}"

    def _read(self, path: Path, start: int, buffer: memoryview, name: str) -> None:
        try:
            count = read_full(self._fds[path], buffer, start)
        except OSError as exc:
            raise WeightsError(f"{path}: tensor {name}: cannot be read: {exc}") from exc
        if count < len(buffer):
            raise WeightsError(
                f"{path}: tensor {name}: file ends at byte {start + count}; download it again"
            )


def open_checkpoint(folder: Path) -> HFCheckpoint:
    """Open a Hugging Face folder of a Llama-family model.

    Raises:
        ConfigError: config.json is missing, malformed, or of a model that does not run.
        WeightsError: A file or tensor is missing, damaged, or not what config.json says.
    """
    return HFCheckpoint(folder, load_config(folder))


def copy_tokenizer(source: TensorSource, folder: Path) -> None:
    """Copy the tokenizer's files into the master's folder."""
    for path in source.tokenizer_files:
        data = read_small_file(path, _MAX_TOKENIZER_BYTES, WeightsError, follow=True)
        write_atomic(folder / path.name, data)


def _weight_files(folder: Path) -> dict[Path, set[str] | None]:
    """Files of the checkpoint, with the tensors to take from each (None: all)."""
    if (folder / SINGLE_FILE).exists() or (folder / SINGLE_FILE).is_symlink():
        return {folder / SINGLE_FILE: None}
    if (folder / INDEX_FILE).exists():
        return _indexed_files(folder)
    pickles = [p.name for p in itertools.islice(folder.iterdir(), 4096) if p.suffix in _PICKLES]
    if pickles:
        raise WeightsError(
            f"{folder}: {min(pickles)} is a pickle, which can run code and is never opened"
            "; use the safetensors form of the model"
        )
    raise WeightsError(f"{folder}: expected {SINGLE_FILE} or {INDEX_FILE}, got neither")


class _Index(Struct, frozen=True):
    """`model.safetensors.index.json`: which file a tensor lies in; the rest is metadata."""

    weight_map: dict[str, str]


def _indexed_files(folder: Path) -> dict[Path, set[str] | None]:
    index = folder / INDEX_FILE
    data = read_small_file(index, _MAX_INDEX_BYTES, WeightsError, follow=True)
    files: dict[Path, set[str] | None] = {}
    for tensor, name in decode(data, _Index, str(index), WeightsError).weight_map.items():
        path = folder / _checked_name(name, tensor, index)
        names = files.setdefault(path, set())
        if names is not None:
            names.add(tensor)
    return files


def _checked_name(name: str, tensor: str, index: Path) -> str:
    """A file name in the folder itself; an index may point nowhere else."""
    if not name.endswith(".safetensors"):
        raise WeightsError(
            f"{index}: weight_map: {tensor[:80]!r} must be a .safetensors file, got {shown(name)}"
        )
    if Path(name).name != name or "\0" in name or "\\" in name or len(name) > 255:
        raise WeightsError(
            f"{index}: {tensor[:80]}: file {name[:80]!r} leaves the folder; nothing is opened"
        )
    return name
