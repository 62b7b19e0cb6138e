"""GB/s of weights of every candidate kernel, beside the memory's own read rate.

`make bench-all` prints the tables that the choices in `tpi/model/kernels.py` rest on. Read rate and
kernels are taken in turns within one run, so that a busy machine slows all alike.
"""

import time
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from tpi.model import bf16x3_gemm as split_float
from tpi.model.kernels import Kernels

pytestmark = [pytest.mark.bench, pytest.mark.timeout(300)]

# An FFN slice of a 7B model; 180 MB in float32, far beyond any cache of one core.
NUM_OUTPUTS, WIDTH = 11008, 4096
REPEATS = 5
Candidates = dict[str, Callable[[], object]]


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def best_rates(candidates: Candidates, num_bytes: int) -> dict[str, float]:
    """Best GB/s of each, the candidates taken in turns; the first round warms up."""
    best = dict.fromkeys(candidates, float("inf"))
    for turn in range(REPEATS + 1):
        for name, run in candidates.items():
            begin = time.perf_counter()
            run()
            if turn:
                best[name] = min(best[name], time.perf_counter() - begin)
    return {name: num_bytes / seconds / 1e9 for name, seconds in best.items()}


def float32_candidates(x: torch.Tensor, weight: torch.Tensor) -> Candidates:
    return {
        "numpy x @ w.T": lambda: x.numpy() @ weight.numpy().T,
        "numpy w.dot(x)": lambda: weight.numpy().dot(x[0].numpy()),
        "torch.mv": lambda: torch.mv(weight, x[0]),
        "F.linear": lambda: F.linear(x, weight),
        "torch (w @ x.T).T": lambda: torch.mm(weight, x.T).T.contiguous(),
    }


def bfloat16_candidates(x: torch.Tensor, weight: torch.Tensor) -> Candidates:
    candidates = float32_candidates(x, weight)
    return {name: run for name, run in candidates.items() if "numpy" not in name}


def converted_candidates(x: torch.Tensor, weight: torch.Tensor) -> Candidates:
    kernels = Kernels(torch.float32)
    candidates: Candidates = {
        "row tiles": lambda: kernels._by_row_tiles(x, weight),
        "matrix tiles": lambda: kernels._by_matrix_tiles(x, weight),
    }
    if split_float.available() and weight.dtype == torch.bfloat16:
        candidates["split float"] = lambda: split_float.project(x, [weight])
    return candidates


CASES = {
    "float32": (torch.float32, torch.float32, float32_candidates),
    "bfloat16": (torch.bfloat16, torch.bfloat16, bfloat16_candidates),
    "float32 from bfloat16": (torch.float32, torch.bfloat16, converted_candidates),
    "float32 from float16": (torch.float32, torch.float16, converted_candidates),
}


@pytest.mark.parametrize("num_rows", [1, 2, 8, 32, 256])
@pytest.mark.parametrize("case", CASES)
def test_chosen_kernel_is_near_the_best(case, num_rows, capsys):
    compute, storage, make_candidates = CASES[case]
    weight = torch.randn(NUM_OUTPUTS, WIDTH).to(storage)
    x = torch.randn(num_rows, WIDTH).to(compute)
    kernels = Kernels(compute)
    candidates = make_candidates(x, weight)
    if num_rows > 1:  # products of one vector, not of this
        candidates = {n: run for n, run in candidates.items() if n[-1] != "v" and "dot" not in n}
    candidates["read"] = lambda: weight.view(torch.int32).sum(dtype=torch.int32)
    candidates["chosen"] = lambda: kernels.project(x, {"w": weight}, "w")
    rates = best_rates(candidates, weight.nbytes)
    with capsys.disabled():
        line = "  ".join(f"{name} {rate:.2f}" for name, rate in rates.items())
        print(f"\n{case}, S={num_rows}: GB/s of weights: {line}")  # noqa: T201
    others = [rate for name, rate in rates.items() if name not in ("read", "chosen")]
    assert rates["chosen"] >= 0.7 * max(others)
