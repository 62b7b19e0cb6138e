"""Seeded random weights of any model shape, made as fast as a disk takes them.

Every value is a function of (seed, tensor name, row, column) alone, so all splits and the
Hugging Face form of one model hold the same numbers. A value is 16 random bits of a counter-based
generator: a sign and seven or eight bits of magnitude, evenly in [s, 2s), or in [s, 2s) and
[2s, 4s); s is a power of two that follows the fan-in. No zero, NaN or infinity can come out, and
bfloat16, float16 and float32 storage hold exactly the same numbers.
"""

import hashlib
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tpi.errors import ConfigError
from tpi.model_config import DTYPES, ModelConfig
from tpi.weights.checkpoint import expected_tensors, split_layer_name
from tpi.weights.dtypes import RawArray, from_float32

# Output over input scale of a matrix. At 1.2 greedy decoding of small shapes soon repeats itself,
# at 1.7 nearly every token is another one (seeds 0-3, widths 128 and 256, six architectures).
_GAIN = 1.6
_BIAS_SCALE = 0.1
# Masks of the random bits that are kept, with the root mean square that comes of them at s = 1:
# mantissa even in [1, 2), and the same with the exponent's lowest bit random too.
_KEPT = {0x807F: math.sqrt(7 / 3), 0x80FF: math.sqrt(7 / 3 * (1 + 4) / 2)}


class SyntheticSource:
    """A `TensorSource` of random numbers; storage dtype is the config's by default.

    Layer l holds the numbers of layer l % distinct_layers; all differ by default. In shard form
    the repeated layers are hard links.
    """

    def __init__(
        self, config: ModelConfig, seed: int = 0, *,
        dtype: str | None = None, distinct_layers: int | None = None,
    ) -> None:  # fmt: skip
        distinct = config.num_layers if distinct_layers is None else distinct_layers
        if not 1 <= distinct <= config.num_layers:
            raise ConfigError(
                f"distinct_layers: expected 1 to {config.num_layers}, got {distinct_layers}"
            )
        self.dtype = dtype or config.dtype
        if self.dtype not in DTYPES:
            raise ConfigError(f"dtype: expected one of {', '.join(DTYPES)}, got {self.dtype!r}")
        self.config = config
        self.seed = seed
        self.distinct_layers = distinct
        self.description = f"synthetic, seed {seed}, {distinct} of {config.num_layers} layers"
        # The digest of a split adds config and layers; 1 counts the ways numbers were made.
        self.fingerprint = f"synthetic 1, seed {seed}"
        self.tokenizer_files: tuple[Path, ...] = ()
        self._shapes = expected_tensors(config)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor by its Hugging Face name."""
        return self._shapes[name]

    def tensor_dtype(self, name: str) -> str:  # noqa: ARG002  # the protocol asks per tensor
        """Storage dtype of a tensor; the same for all."""
        return self.dtype

    def read_rows(self, name: str, start: int, stop: int) -> RawArray:
        """Make rows [start, stop) of a tensor (elements, for a vector).

        Shapes: (stop - start, columns) or (stop - start,), raw storage of `dtype`.
        """
        shape = self._shapes[name]
        columns = shape[1] if len(shape) == 2 else 1
        bits = self._bits(name, start * columns, (stop - start) * columns)
        if name.endswith("norm.weight"):
            raw = _near_one(bits, self.dtype)
        else:
            fan_in = columns if len(shape) == 2 else 0
            raw = _spread(bits, *_kept_and_exponent(fan_in), self.dtype)
        return raw.reshape(stop - start, *shape[1:])

    def _bits(self, name: str, start: int, count: int) -> NDArray[np.uint16]:
        """16 random bits for each of `count` elements from element `start` on."""
        layer, rest = split_layer_name(name)
        if layer is not None:
            name = f"model.layers.{layer % self.distinct_layers}.{rest}"
        key = hashlib.sha256(f"{self.seed}/{name}".encode()).digest()
        # DXSM can jump to any position at once and makes 2.8 GB/s; Philox makes 1.8.
        generator = np.random.PCG64DXSM(int.from_bytes(key[:16], "little"))
        generator.advance(start // 4)
        words = generator.random_raw((start + count + 3) // 4 - start // 4)
        return words.view(np.uint16)[start % 4 : start % 4 + count]


def _kept_and_exponent(fan_in: int) -> tuple[int, int]:
    """Mask of bits to keep and exponent of s for a matrix of this fan-in (0: a bias).

    The nearest scale that these two give, which is within 26 % of the one wanted.
    """
    scale = _GAIN / math.sqrt(fan_in) if fan_in else _BIAS_SCALE
    logs = {kept: math.log2(scale / rms) for kept, rms in _KEPT.items()}
    kept = min(logs, key=lambda k: abs(logs[k] - round(logs[k])))
    return kept, max(round(logs[kept]), -14)  # the least normal exponent of float16


def _spread(bits: NDArray[np.uint16], kept: int, exponent: int, dtype: str) -> RawArray:
    """Turn 16 random bits into a number of scale 2^exponent; changes `bits` in place."""
    bits &= np.uint16(kept)
    if dtype == "float16":
        sign = bits & np.uint16(0x8000)
        bits ^= sign
        bits <<= np.uint16(3)  # float16 has three bits of mantissa more
        bits += np.uint16((exponent + 15) << 10)
        bits |= sign
        return bits.view(np.float16)
    # The sum's carry ends in the exponent and cannot reach the sign.
    bits += np.uint16((exponent + 127) << 7)
    if dtype == "bfloat16":
        return bits
    wide = bits.astype(np.uint32)
    wide <<= np.uint32(16)
    return wide.view(np.float32)


def _near_one(bits: NDArray[np.uint16], dtype: str) -> RawArray:
    """Turn random bits into 0.75 ... 1.25 in steps that bfloat16 holds."""
    values = (bits >> np.uint16(10)).astype(np.float32) / np.float32(128) + np.float32(0.75)
    return from_float32(values, dtype)
