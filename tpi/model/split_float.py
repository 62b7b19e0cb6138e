"""float32 products of bfloat16 weights without converting the weights.

A float32 number is exactly the sum of three bfloat16 numbers (3 x 8 bits of mantissa), and the
product of two bfloat16 numbers is exact in float32. So `x @ W.T` in float32 is three bfloat16
products that accumulate in float32, which CPUs with AVX512_BF16 or AMX do at many times their
float32 rate. MKL has that product (bfloat16 in, float32 out) and torch's own library carries and
exports it, but torch offers no way to it, so it is called by its C name. Where the function or
the CPU lacks it, `available` is false and `matvec` converts tile by tile.

Intel Sapphire Rapids, one thread, GB/s of bfloat16 weights, this against tiles: 1 row 9.4-10.4
and 6.6-7.7; 8 rows 8.3-9.6 and 4.5; 128 rows 2.3 and 0.8; 512 rows 0.57 and 0.2. Largest error
in either: 4e-7 of the largest result.
"""

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path

import torch

_ROW_MAJOR, _NO_TRANS, _TRANS = 101, 111, 112  # CBLAS enumerations
_LIBRARY = "libtorch_cpu.so"
_SYMBOL = "cblas_gemm_bf16bf16f32"
# Rows of weights per call: bounds the product before its three parts are summed, which is
# 3 * S * rows * 4 bytes.
_PRODUCT_BYTES = 3 << 20

_Gemm = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]


@functools.cache
def _gemm() -> _Gemm | None:
    """MKL's product as a function (weight_NK bf16, x_MK bf16, out_NM f32), if it can be had."""
    if not torch.cpu.get_capabilities().get("amx_bf16", False):
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


def linear(x_SK: torch.Tensor, weight_NK: torch.Tensor) -> torch.Tensor:
    """Multiply float32 rows by bfloat16 weights, as exactly as a float32 product.

    Shapes: (S, K) float32, (N, K) bfloat16, both contiguous -> (S, N) float32.

    Raises:
        RuntimeError: it is not `available` here.
    """
    gemm = _gemm()
    if gemm is None:
        raise RuntimeError("this CPU or this torch has no bfloat16 product with float32 output")
    num_rows, num_outputs = x_SK.shape[0], weight_NK.shape[0]
    parts_MK = _split(x_SK)
    rows = max(64, _PRODUCT_BYTES // (4 * 3 * num_rows))
    if num_outputs <= rows:
        return _summed(gemm, weight_NK, parts_MK)
    out_SN = torch.empty(num_rows, num_outputs)
    for start in range(0, num_outputs, rows):
        out_SN[:, start : start + rows] = _summed(gemm, weight_NK[start : start + rows], parts_MK)
    return out_SN


def _split(x_SK: torch.Tensor) -> torch.Tensor:
    """Three bfloat16 numbers whose sum is x: (S, K) float32 -> (3 S, K) bfloat16."""
    high = x_SK.bfloat16()
    rest = x_SK - high
    middle = rest.bfloat16()
    return torch.cat((high, middle, (rest - middle).bfloat16()))


def _summed(gemm: _Gemm, weight_NK: torch.Tensor, parts_MK: torch.Tensor) -> torch.Tensor:
    out_NM = torch.empty(weight_NK.shape[0], parts_MK.shape[0])
    gemm(weight_NK, parts_MK, out_NM)
    return out_NM.view(weight_NK.shape[0], 3, -1).sum(1).T.contiguous()
