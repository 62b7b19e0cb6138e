import pytest
import torch

from tpi.model import bf16x3_gemm as split_float
from tpi.model import kernels as matvec
from tpi.model.kernels import Kernels

ROWS = [1, 2, 3, 5, 40, 70]


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(params=["as found", "no split"])
def kernels(request, monkeypatch):
    """The float32 kernels of this CPU, and those of one without AMX."""
    if request.param == "no split":
        monkeypatch.setattr(split_float, "available", lambda: False)
    return Kernels(torch.float32)


def matrices(num_rows, num_outputs, width, dtype):
    generator = torch.Generator().manual_seed(num_rows)
    x = torch.randn(num_rows, width, generator=generator)
    return x, torch.randn(num_outputs, width, generator=generator).to(dtype)


def error(got, x, weight):
    expected = x.double() @ weight.double().T
    return float((got.double() - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("num_rows", ROWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_float32_product_is_float32_exact_whatever_the_storage(kernels, dtype, num_rows):
    # Sizes that no tile divides; more than one tile in both directions.
    x, weight = matrices(num_rows, 301, 1500, dtype)
    (got,) = kernels.project(x, {"w": weight}, "w")
    assert got.dtype == torch.float32
    assert got.is_contiguous()
    assert error(got, x, weight) < 2e-6


@pytest.mark.parametrize("num_rows", [1, 2, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_bfloat16_product_rounds_once(dtype, num_rows):
    x, weight = matrices(num_rows, 301, 1500, dtype)
    (got,) = Kernels(torch.bfloat16).project(x.bfloat16(), {"w": weight}, "w")
    assert got.dtype == torch.bfloat16
    assert got.is_contiguous()
    assert error(got, x.bfloat16(), weight.bfloat16()) < 2**-8


@pytest.mark.parametrize("storage", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("num_rows", [1, 3, 8])
def test_bias_of_each_weight_is_added(kernels, num_rows, storage):
    x, weight = matrices(num_rows, 20, 64, storage)
    bias = torch.arange(20.0).to(storage)
    plain, other = kernels.project(x, {"a": weight, "b": weight}, "a", "b")
    assert torch.equal(plain, other)
    with_bias, without = kernels.project(x, {"a": weight, "b": weight, "a_bias": bias}, "a", "b")
    assert torch.equal(with_bias, plain + bias)
    assert torch.equal(without, plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("num_rows", [1, 2, 8])
def test_result_outlives_the_weights(kernels, dtype, num_rows):
    x, weight = matrices(num_rows, 33, 64, dtype)
    (got,) = kernels.project(x, {"w": weight}, "w")
    before = got.clone()
    weight.fill_(torch.nan)
    x.fill_(torch.nan)
    assert torch.equal(got, before)


@pytest.mark.parametrize("num_rows", [1, 70])
@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16], ids=str)
def test_conversion_never_holds_more_than_a_tile(monkeypatch, compute, num_rows):
    monkeypatch.setattr(split_float, "available", lambda: False)
    kernels, tiles = Kernels(compute), list[torch.Tensor]()
    real = kernels._tile

    def recorded(stored):
        tiles.append(real(stored))
        return tiles[-1]

    monkeypatch.setattr(kernels, "_tile", recorded)
    x, weight = matrices(num_rows, 900, 1500, torch.float16)
    kernels.project(x.to(compute), {"w": weight}, "w")
    assert sum(tile.numel() for tile in tiles) == weight.numel()
    assert {tile.untyped_storage().data_ptr() for tile in tiles} == {kernels._scratch.data_ptr()}
    assert kernels._scratch.nbytes == matvec.SCRATCH_BYTES <= 1 << 20


def test_same_input_gives_the_same_bits(kernels):
    x, weight = matrices(1, 301, 1500, torch.bfloat16)
    first, again = (kernels.project(x, {"w": weight}, "w")[0] for _ in range(2))
    assert torch.equal(first, again)


def test_compute_dtype_that_has_no_kernels_is_refused():
    with pytest.raises(ValueError, match="float16"):
        Kernels(torch.float16)
