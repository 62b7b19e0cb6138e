import pytest
import torch

from tpi.model import bf16x3_gemm as split_float


@pytest.fixture
def fresh():
    split_float._gemm.cache_clear()
    yield
    split_float._gemm.cache_clear()


def test_three_parts_sum_to_the_number():
    x = torch.randn(7, 300, generator=torch.Generator().manual_seed(1)) * 1e3
    high, middle, low = split_float.split(x).double().view(3, 7, 300)
    assert torch.equal(high + middle + low, x.double())


@pytest.mark.skipif(not split_float.available(), reason="this CPU has no AMX")
@pytest.mark.parametrize("num_rows", [1, 128, 129, 300])
def test_pieces_of_rows_and_of_weights_make_the_whole(monkeypatch, num_rows):
    monkeypatch.setattr(split_float, "_PRODUCT_BYTES", 128 * 3 * 4 * 10)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(num_rows, 64, generator=generator)
    weights = [torch.randn(n, 64, generator=generator).bfloat16() for n in (7, 10, 4000)]
    for got, weight in zip(split_float.project(x, weights), weights, strict=True):
        expected = x.double() @ weight.double().T
        assert (got - expected).abs().max() < 1e-6 * expected.abs().max()


def test_cpu_without_the_instructions_has_no_product(fresh, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    assert not split_float.available()
    with pytest.raises(RuntimeError, match="no bfloat16 product"):
        split_float.project(torch.zeros(1, 8), [torch.zeros(2, 8).bfloat16()])


def test_torch_without_the_function_has_no_product(fresh, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    monkeypatch.setattr(split_float, "_SYMBOL", "cblas_no_such_function")
    assert not split_float.available()


def test_function_that_computes_something_else_is_not_used():
    def wrong(weight_NK, x_MK, out_NM):
        out_NM.zero_()

    assert not split_float._is_right(wrong)
