"""Storage dtypes as raw numpy arrays, and the conversions between them.

numpy has no bfloat16: a raw array of it is `uint16` (the upper half of a float32). Conversions
round to nearest, ties to even, as torch does.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tpi.errors import WeightsError

RawArray = NDArray[Any]  # float32 -> float32, float16 -> float16, bfloat16 -> uint16

RAW_DTYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype("<u2"),
}


def to_float32(raw: RawArray, dtype: str) -> NDArray[np.float32]:
    """Widen a raw array; exact. A float32 array is returned as it is."""
    if dtype == "bfloat16":
        wide = raw.astype(np.uint32)
        wide <<= np.uint32(16)
        return wide.view(np.float32)
    return raw.astype(np.float32, copy=False)


def from_float32(values: NDArray[np.float32], dtype: str) -> RawArray:
    """Round float32 values to `dtype`; too large becomes infinity, NaN stays NaN."""
    if dtype == "bfloat16":
        bits = values.view(np.uint32)
        rounded = bits >> np.uint32(16)
        rounded &= np.uint32(1)
        rounded += np.uint32(0x7FFF)
        rounded += bits
        rounded >>= np.uint32(16)
        raw = rounded.astype(np.uint16)
        nan = np.isnan(values)
        if nan.any():
            raw[nan] = 0x7FC0
        return raw
    with np.errstate(over="ignore"):
        return values.astype(RAW_DTYPES[dtype], copy=False)


def convert(raw: RawArray, source: str, target: str, where: str) -> RawArray:
    """Convert a raw array from one storage dtype to another; between equal ones it is returned.

    Raises:
        WeightsError: a finite value is too large for `target` (float16 ends at 65504).
    """
    if source == target:
        return raw
    wide = to_float32(raw, source)
    narrow = from_float32(wide, target)
    # float16 alone has a shorter range: bfloat16 covers all but the last half step of float32.
    if target == "float16" and np.isinf(narrow).sum() != np.isinf(wide).sum():
        largest = float(np.abs(wide[np.isfinite(wide)]).max())
        raise WeightsError(
            f"{where}: holds {largest:g}, float16 ends at 65504; use bfloat16 or float32"
        )
    return narrow
