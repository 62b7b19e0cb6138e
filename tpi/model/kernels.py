"""The matrix kernels, chosen by measuring, all in this one place.

Decoding is nothing but matrix-vector products over weights that are read once, so a kernel is
judged by the GB/s of weights it gets through. The choices below come from
`tests/benchmarks/test_bench_matvec.py` (torch 2.13, numpy 2.x, one thread; "Intel" is a Sapphire
Rapids Xeon that reads memory at 16-17 GB/s, "AMD" an EPYC that reads it at 29); run it with
`make bench-all` on another machine before changing one.
"""

import functools
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F

from tpi.model import bf16x3_gemm as split_float

# Weights that are stored in another dtype than they are multiplied in are converted into scratch
# a tile at a time. For a vector the tile and its source should share the second-level cache.
# Intel, bf16 -> f32, GB/s of bf16 weights by tile size: 64 KiB 4.0, 128 KiB 5.7, 256 KiB 6.9,
# 512 KiB 7.9, 1 MiB 6.9, 2 MiB 5.4.
VECTOR_TILE_BYTES = 512 << 10
# For many rows of x the tile is cut in both directions: tiles of whole rows get thin. Intel, 512
# rows by 4096 x 11008 weights, GB/s: 11 whole rows 0.13, 256 x 1024 0.27, ready float32 0.31. The
# other way round for 8 rows by 11008 x 4096: 5.0 and 3.7.
MATRIX_TILE_SHAPE = (256, 1024)
MATRIX_TILE_LEAST_ROWS = 16
SCRATCH_BYTES = 1 << 20


class Kernels:
    """Matrix products in one compute dtype.

    Args:
        compute_dtype: float32 or bfloat16; what products are made of and come out as.
            Weights may be stored in float32, float16 or bfloat16.
    """

    def __init__(self, compute_dtype: torch.dtype) -> None:
        if compute_dtype not in (torch.float32, torch.bfloat16):
            raise ValueError(f"compute_dtype must be float32 or bfloat16, got {compute_dtype}")
        self.compute_dtype = compute_dtype
        self._scratch = torch.empty(SCRATCH_BYTES // compute_dtype.itemsize, dtype=compute_dtype)
        self._splits = compute_dtype == torch.float32 and split_float.available()

    def project(
        self, x_SK: torch.Tensor, weights: Mapping[str, torch.Tensor], *names: str
    ) -> list[torch.Tensor]:
        """Multiply rows by named weights of a block, each as it is stored: x @ weight.T + bias.

        The bias of weight "q" is "q_bias", where the block has one. The results are new memory,
        never views of the weights, which may be gone a moment later.

        Shapes: (S, K) compute dtype, (N, K) any float dtype each -> (S, N) compute dtype each,
            contiguous.
        """
        matrices = [weights[name] for name in names]
        if self._splits and matrices[0].dtype == torch.bfloat16:
            results = split_float.project(x_SK, matrices)
        else:
            results = [self._product(x_SK, weight_NK) for weight_NK in matrices]
        for name, out_SN in zip(names, results, strict=True):
            bias_N = weights.get(f"{name}_bias")
            if bias_N is not None:
                out_SN += bias_N
        return results

    def _product(self, x_SK: torch.Tensor, weight_NK: torch.Tensor) -> torch.Tensor:
        if weight_NK.dtype == self.compute_dtype:
            is_float32 = self.compute_dtype == torch.float32
            return (_float32 if is_float32 else _bfloat16)(x_SK, weight_NK)
        if self.compute_dtype == torch.float32 and x_SK.shape[0] >= MATRIX_TILE_LEAST_ROWS:
            return self._by_matrix_tiles(x_SK, weight_NK)
        return self._by_row_tiles(x_SK, weight_NK)

    def _by_row_tiles(self, x_SK: torch.Tensor, weight_NK: torch.Tensor) -> torch.Tensor:
        num_outputs, width = weight_NK.shape
        rows = max(1, VECTOR_TILE_BYTES // self.compute_dtype.itemsize // width)
        out_SN = torch.empty(x_SK.shape[0], num_outputs, dtype=self.compute_dtype)
        for start in range(0, num_outputs, rows):
            tile = self._tile(weight_NK[start : start + rows])
            _into(out_SN[:, start : start + rows], x_SK, tile)
        return out_SN

    def _by_matrix_tiles(self, x_SK: torch.Tensor, weight_NK: torch.Tensor) -> torch.Tensor:
        num_outputs, width = weight_NK.shape
        rows, cols = MATRIX_TILE_SHAPE
        out_SN = torch.zeros(x_SK.shape[0], num_outputs, dtype=self.compute_dtype)
        for start in range(0, num_outputs, rows):
            part_SN = out_SN[:, start : start + rows]
            for left in range(0, width, cols):
                tile = self._tile(weight_NK[start : start + rows, left : left + cols])
                part_SN.addmm_(x_SK[:, left : left + cols], tile.T)
        return out_SN

    def _tile(self, stored: torch.Tensor) -> torch.Tensor:
        if stored.numel() > self._scratch.numel():  # one row over 1 MiB: no known model
            self._scratch = torch.empty(stored.numel(), dtype=self.compute_dtype)
        return self._scratch[: stored.numel()].view(stored.shape).copy_(stored)


def _into(out_SN: torch.Tensor, x_SK: torch.Tensor, weight_NK: torch.Tensor) -> None:
    if x_SK.shape[0] > 1:
        torch.mm(x_SK, weight_NK.T, out=out_SN)
    elif weight_NK.dtype == torch.float32:
        # Intel, 512 KiB tiles: NumPy 7.9 GB/s of bf16 weights, torch.mv 6.7.
        out_SN[0].numpy()[:] = weight_NK.numpy().dot(x_SK[0].numpy())
    else:
        torch.mv(weight_NK, x_SK[0], out=out_SN[0])


@functools.cache
def _is_intel() -> bool:
    """Whether MKL is at its best here: who makes the processor decides, not a race at start.

    float32 vectors, GB/s: AMD NumPy 28-31, torch 14; Intel torch 15.2-15.6, NumPy 14.8-15.2;
    bfloat16 has its own in `_bfloat16`. A
    race between two so close would give other bits from one start to the next.
    """
    try:
        return "GenuineIntel" in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False


def _float32(x_SK: torch.Tensor, weight_NK: torch.Tensor) -> torch.Tensor:
    num_rows = x_SK.shape[0]
    if num_rows == 1:
        if _is_intel():
            return torch.mv(weight_NK, x_SK[0]).unsqueeze(0)
        return torch.from_numpy(weight_NK.numpy().dot(x_SK[0].numpy())).unsqueeze(0)
    if 4 <= num_rows <= 32:
        # Intel, 8 rows: (weight @ x.T).T 8.0 GB/s, x @ weight.T 5.4. With 2-3 rows 8 against 16,
        # from 64 rows on the same.
        return torch.mm(weight_NK, x_SK.T).T.contiguous()
    return F.linear(x_SK, weight_NK)


def _bfloat16(x_SK: torch.Tensor, weight_NK: torch.Tensor) -> torch.Tensor:
    if x_SK.shape[0] == 1:
        # Intel: 15.7 GB/s, F.linear 12.7. AMD (Zen 4): torch.mv 5.2, F.linear 10.7.
        if _is_intel():
            return torch.mv(weight_NK, x_SK[0]).unsqueeze(0)
        return F.linear(x_SK, weight_NK)
    # Intel, 2-32 rows: 16-17 GB/s, F.linear 11-13; 128 rows: 5.7 and 4.3.
    return torch.mm(weight_NK, x_SK.T).T.contiguous()
