"""Reads the numbers of a GGUF file back, dequantized.

Quantizing to four bits changes a model, and no honest arithmetic gives the tokens of the original.
So the reference for a quantized file is Transformers on the file's own numbers:
`write_hf_folder(GgufSource(file, model), folder)`. Rows come back in the order of Hugging Face.
"""

import hashlib
from pathlib import Path

import numpy as np

from baselines.llamacpp.gguf_layout import file_rows, gguf_tensors
from tpi.errors import WeightsError, map_errors
from tpi.model_config import ModelConfig
from tpi.weights.dtypes import RawArray


class GgufSource:
    """A `TensorSource` of float32 numbers in a file that `make_gguf` made of a model.

    Raises:
        WeightsError: It cannot be read, or is not of this model.
    """

    def __init__(self, path: Path, model: ModelConfig) -> None:
        # Only here: the package is an optional extra.
        import gguf

        self._dequantize = gguf.dequantize
        with map_errors({OSError: WeightsError, ValueError: WeightsError}, f"{path}"):
            found = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
        self._tensors = {t.source: t for t in gguf_tensors(model, "float32") if t.source}
        for tensor in self._tensors.values():
            shape = found[tensor.name].shape[::-1].tolist() if tensor.name in found else None
            if shape != list(tensor.shape):
                where = f"{path}: tensor {tensor.name}"
                raise WeightsError(f"{where}: expected shape {list(tensor.shape)}, got {shape}")
        self._found = found
        self.config = model
        self.dtype = "float32"
        self.distinct_layers = model.num_layers
        self.description = str(path)
        self.tokenizer_files: tuple[Path, ...] = ()
        self.fingerprint = self._make_fingerprint()

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor by its Hugging Face name."""
        return self._tensors[name].shape

    def tensor_dtype(self, name: str) -> str:  # noqa: ARG002  # the protocol asks per tensor
        """Float32, whatever the file holds."""
        return self.dtype

    def read_rows(self, name: str, start: int, stop: int) -> RawArray:
        """Rows [start, stop) of a tensor (elements, for a vector).

        Shapes: (stop - start, columns) or (stop - start,) float32.
        """
        tensor = self._tensors[name]
        stored = self._found[tensor.name]
        rows = stored.data[file_rows(tensor, start, stop)]
        numbers = self._dequantize(rows, stored.tensor_type)
        return np.ascontiguousarray(numbers, np.float32).reshape(stop - start, *tensor.shape[1:])

    def _make_fingerprint(self) -> str:
        """Hash the config, and of each tensor its type and the bytes of its first row."""
        sha = hashlib.sha256(repr(self.config).encode())
        for tensor in self._tensors.values():
            stored = self._found[tensor.name]
            sha.update(f"{tensor.name} {stored.tensor_type.name} {tensor.shape}".encode())
            sha.update(np.ascontiguousarray(stored.data[:1]).tobytes())
        return f"gguf {sha.hexdigest()}"
