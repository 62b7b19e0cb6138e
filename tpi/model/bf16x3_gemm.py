"""float32 products of bfloat16 weights without converting the weights.

A float32 number is exactly the sum of three bfloat16 numbers (3 x 8 bits of mantissa), and the
product of two bfloat16 numbers is exact in float32. So `x @ W.T` in float32 is three bfloat16
products that accumulate in float32, which CPUs with AMX do at many times their float32 rate. MKL
has that product (bfloat16 in, float32 out) and torch's own library carries and exports it, but
torch offers no way to it, so it is called by its C name. Where the function or the CPU lacks it,
`available` is false and `kernels.py` converts tile by tile.

Intel Sapphire Rapids, one thread, GB/s of bfloat16 weights, this against tiles: 1 row 9.4-10.4
and 6.6-7.7; 8 rows 8.3-9.6 and 4.5; 128 rows 2.3 and 0.8; 512 rows 0.57 and 0.2. Largest error
in either: 4e-7 of the largest result.
"""

import ctypes
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

_ROW_MAJOR, _NO_TRANS, _TRANS = 101, 111, 112  # CBLAS enumerations
_LIBRARY = "libtorch_cpu.so"
_SYMBOL = "cblas_gemm_bf16bf16f32"
# Rows of x at once: more would gain nothing and hold 10 bytes for each of their elements.
_MOST_ROWS = 128
# Bounds the product before its three parts are summed, 3 * S * rows * 4 bytes, by the rows of
# weights per call. 512 rows of x, 8192 x 4096 weights, GB/s: 1 MiB 0.43, 3 MiB 0.50, 12 MiB 0.46.
_PRODUCT_BYTES = 3 << 20

_Gemm = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]


@functools.cache
def _gemm() -> _Gemm | None:
    """MKL's product as a function (weight_NK bf16, x_MK bf16, out_NM f32), if it can be had."""
    # Without AMX MKL's product is slower than converting: 2.3 and 5.9 GB/s for one row.
    get_capabilities = getattr(torch.cpu, "get_capabilities", None)  # the oldest torch lacks it
    if get_capabilities is None or not get_capabilities().get("amx_bf16", False):
        return None
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / _LIBRARY))
        function = getattr(library, _SYMBOL)
    except (OSError, AttributeError):
        return None
    integer, pointer, real = ctypes.c_int, ctypes.c_void_p, ctypes.c_float
    function.restype = None
    function.argtypes = [
        integer, integer, integer, integer, integer, integer, real, pointer, integer,
        pointer, integer, real, pointer, integer,
    ]  # fmt: skip

    def gemm(weight_NK: torch.Tensor, x_MK: torch.Tensor, out_NM: torch.Tensor) -> None:
        num_outputs, width = weight_NK.shape
        num_rows = x_MK.shape[0]
        function(
            _ROW_MAJOR, _NO_TRANS, _TRANS, num_outputs, num_rows, width,
            1.0, weight_NK.data_ptr(), width, x_MK.data_ptr(), width,
            0.0, out_NM.data_ptr(), num_rows,
        )  # fmt: skip

    return gemm if _is_right(gemm) else None


def _is_right(gemm: _Gemm) -> bool:
    """Try a product of small whole numbers, exact in float32: the C signature is not checked."""
    weight_NK = (torch.arange(24 * 40) % 13 - 6.0).view(24, 40).bfloat16()
    x_MK = (torch.arange(3 * 40) % 11 - 5.0).view(3, 40).bfloat16()
    out_NM = torch.empty(24, 3)
    gemm(weight_NK, x_MK, out_NM)
    return torch.equal(out_NM, weight_NK.float() @ x_MK.float().T)


def available() -> bool:
    """Whether this CPU and this torch can do it."""
    return _gemm() is not None


def project(x_SK: torch.Tensor, weights: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Multiply float32 rows by bfloat16 weights: x @ weight.T each.

    Shapes: (S, K) float32, (N, K) bfloat16 each, all contiguous -> (S, N) float32 each.

    Raises:
        RuntimeError: it is not `available` here.
    """
    gemm = _gemm()
    if gemm is None:
        raise RuntimeError("this CPU or this torch has no bfloat16 product with float32 output")
    num_rows = x_SK.shape[0]
    results = [torch.empty(num_rows, weight_NK.shape[0]) for weight_NK in weights]
    for start in range(0, num_rows, _MOST_ROWS):
        parts_MK = split(x_SK[start : start + _MOST_ROWS])  # once for all the weights
        for weight_NK, out_SN in zip(weights, results, strict=True):
            _product(gemm, parts_MK, weight_NK, out_SN[start : start + _MOST_ROWS])
    return results


def split(x_SK: torch.Tensor) -> torch.Tensor:
    """Three bfloat16 numbers whose sum is x, as three blocks of rows.

    Shapes: (S, K) float32 -> (3 S, K) bfloat16.
    """
    num_rows, width = x_SK.shape
    parts_MK = torch.empty(3 * num_rows, width, dtype=torch.bfloat16)
    high, middle, low = parts_MK.view(3, num_rows, width)
    rest = x_SK - high.copy_(x_SK)
    rest -= middle.copy_(rest)
    low.copy_(rest)
    return parts_MK


def _product(
    gemm: _Gemm, parts_MK: torch.Tensor, weight_NK: torch.Tensor, out_SN: torch.Tensor
) -> None:
    num_outputs, num_parts = weight_NK.shape[0], parts_MK.shape[0]
    rows = _PRODUCT_BYTES // (4 * num_parts)
    for start in range(0, num_outputs, rows):
        tile_NK = weight_NK[start : start + rows]
        product_NM = torch.empty(tile_NK.shape[0], num_parts)
        gemm(tile_NK, parts_MK, product_NM)
        # Added in place, then copied: 0.4 ms for (2048, 3, 128), where torch.sum with the
        # transposed `out` takes 4.5.
        high_NS, middle_NS, low_NS = product_NM.view(tile_NK.shape[0], 3, -1).unbind(1)
        out_SN[:, start : start + rows] = high_NS.add_(middle_NS).add_(low_NS).T
