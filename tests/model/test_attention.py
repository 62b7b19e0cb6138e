"""Attention against a plain loop over heads and positions, and the cache it reads from."""

import pytest
import torch

from tpi.model import attention
from tpi.model.attention import Segment, attend, make_segments
from tpi.model.kv import KvCache

EVEN = (0, 0, 1, 1)
CUT = (0, 1, 1, 1, 2, 2, 2, 3)  # the first and the last group belong to other ranks as well


def plain(q, keys, values, kv_of_q, pads):
    """One query at a time, in float64."""
    out = torch.zeros_like(q, dtype=torch.float64)
    batch, length, num_heads, size = q.shape
    start = keys.shape[2] - length
    for b in range(batch):
        for s in range(max(0, pads[b] - start), length):
            for h in range(num_heads):
                span = slice(pads[b], start + s + 1)
                k, v = (x[b, kv_of_q[h], span].double() for x in (keys, values))
                scores = k @ q[b, s, h].double() / size**0.5
                out[b, s, h] = scores.softmax(-1) @ v
    return out


def inputs(kv_of_q, batch, length, total, size=8):
    generator = torch.Generator().manual_seed(total)
    q = torch.randn(batch, length, len(kv_of_q), size, generator=generator)
    cache = torch.randn(2, batch, max(kv_of_q) + 1, total + 5, size, generator=generator)
    return q, cache[0, :, :, :total], cache[1, :, :, :total]


@pytest.mark.parametrize(
    ("kv_of_q", "segments"),
    [
        (EVEN, (Segment(0, 4, 0, 2),)),
        ((0, 1, 2), (Segment(0, 3, 0, 3),)),
        ((0,) * 5, (Segment(0, 5, 0, 1),)),
        (CUT, (Segment(0, 1, 0, 1), Segment(1, 7, 1, 3), Segment(7, 8, 3, 4))),
        ((0, 1, 1), (Segment(0, 1, 0, 1), Segment(1, 3, 1, 2))),
        ((), ()),
    ],
)
def test_segments_are_the_longest_uniform_ones(kv_of_q, segments):
    assert make_segments(kv_of_q) == segments


@pytest.mark.parametrize("kv_of_q", [EVEN, CUT, (0, 0, 0)], ids=str)
@pytest.mark.parametrize(("length", "total"), [(1, 1), (1, 9), (6, 6), (4, 9)])
@pytest.mark.parametrize("pads", [None, (3, 0), (8, 5)], ids=str)
def test_attention_equals_the_plain_loop(kv_of_q, length, total, pads):
    if pads is not None and max(pads) >= total:
        pads = (0, total - 1)
    q, keys, values = inputs(kv_of_q, 2, length, total)
    got = attend(q, keys, values, make_segments(kv_of_q), pads)
    expected = plain(q, keys, values, kv_of_q, pads or (0, 0))
    assert (got - expected).abs().max() < 1e-5
    assert got.is_contiguous()


def test_mask_in_pieces_gives_the_same(monkeypatch):
    q, keys, values = inputs(EVEN, 2, 7, 20)
    whole = attend(q, keys, values, make_segments(EVEN))
    monkeypatch.setattr(attention, "_MASK_BYTES", 2 * 20 * 4)
    pieces = attend(q, keys, values, make_segments(EVEN))
    assert (pieces - whole).abs().max() < 1e-6


@pytest.mark.parametrize(("length", "total"), [(1, 9), (6, 6), (4, 9)])
def test_bfloat16_stays_near_the_plain_loop(length, total):
    q, keys, values = (x.bfloat16() for x in inputs(CUT, 2, length, total))
    got = attend(q, keys, values, make_segments(CUT), (2, 0))
    expected = plain(q, keys, values, CUT, (2, 0))
    assert got.dtype == torch.bfloat16
    assert (got.double() - expected).abs().max() < 2**-7 * expected.abs().max()


def test_values_after_the_queries_are_never_looked_at():
    q, keys, values = inputs(EVEN, 1, 3, 9)
    before = attend(q[:, :2], keys[:, :, :8], values[:, :, :8], make_segments(EVEN))
    keys[:, :, 8], values[:, :, 8] = 1e9, 1e9
    after = attend(q[:, :2], keys[:, :, :8], values[:, :, :8], make_segments(EVEN))
    assert torch.equal(before, after)


def test_cache_gives_back_all_that_was_stored_in_order():
    cache = KvCache(
        num_layers=2, local_num_kv_heads=3, head_size=4, max_batch=2, max_tokens=10,
        dtype=torch.float32,
    )  # fmt: skip
    k, v = torch.randn(2, 2, 7, 3, 4)
    cache.store(0, 0, k + 1, v + 1)
    for start, stop in ((0, 4), (4, 5), (5, 7)):
        keys, values = cache.store(1, start, k[:, start:stop], v[:, start:stop])
        assert torch.equal(keys, k[:, :stop].transpose(1, 2))
        assert torch.equal(values, v[:, :stop].transpose(1, 2))
    keys, _ = cache.store(0, 7, k[:1, :1], v[:1, :1])
    assert keys.shape == (1, 3, 8, 4)
    assert torch.equal(keys[:, :, :7], k[:1].transpose(1, 2) + 1)


def test_cache_of_a_rank_without_heads_is_empty():
    cache = KvCache(
        num_layers=0, local_num_kv_heads=0, head_size=4, max_batch=2, max_tokens=10,
        dtype=torch.float32,
    )  # fmt: skip
    assert cache._cache.nbytes == 0
