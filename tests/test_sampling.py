import math

import pytest
import torch

from tpi.errors import NumericsError
from tpi.options import SamplingOptions
from tpi.sampling import Sampler

LOGITS = torch.tensor([[0.0, 3.0, 1.0, 2.0], [5.0, -1.0, 4.0, 0.0]])
PROBABILITIES = torch.softmax(LOGITS, -1)


def picks(sampler: Sampler, times: int = 400) -> list[tuple[int, ...]]:
    return [sampler.pick(LOGITS) for _ in range(times)]


def test_greedy_takes_the_largest_of_each_sequence():
    assert Sampler().pick(LOGITS) == (1, 0)


def test_greedy_takes_the_lowest_id_of_equals():
    assert Sampler().pick(torch.tensor([[1.0, 2.0, 2.0]])) == (1,)


def test_draws_follow_the_probabilities():
    num_draws = 4000
    drawn = picks(Sampler(SamplingOptions(temperature=1.0, seed=3)), times=num_draws)
    for b in range(2):
        counts = torch.bincount(torch.tensor([pick[b] for pick in drawn]), minlength=4)
        sigma = (PROBABILITIES[b] * (1 - PROBABILITIES[b]) / num_draws).sqrt()
        assert ((counts / num_draws - PROBABILITIES[b]).abs() <= 4 * sigma + 1e-3).all()


def test_same_seed_same_tokens_whatever_torch_draws_meanwhile():
    first = picks(Sampler(SamplingOptions(temperature=2.0, seed=7)), times=20)
    again, sampler = [], Sampler(SamplingOptions(temperature=2.0, seed=7))
    for _ in range(20):
        torch.rand(5)
        again.append(sampler.pick(LOGITS))
    assert again == first
    assert picks(Sampler(SamplingOptions(temperature=2.0, seed=8)), times=20) != first


def test_sampling_leaves_the_random_numbers_of_torch_alone():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    Sampler(SamplingOptions(temperature=1.0, seed=5)).pick(LOGITS)
    assert torch.equal(torch.rand(3), expected)


def test_top_k_keeps_the_k_likeliest():
    drawn = picks(Sampler(SamplingOptions(temperature=5.0, top_k=2)))
    assert {pick[0] for pick in drawn} == {1, 3}
    assert {pick[1] for pick in drawn} == {0, 2}


def test_top_k_beyond_the_vocabulary_keeps_all():
    assert {pick[0] for pick in picks(Sampler(SamplingOptions(temperature=5.0, top_k=99)))} == {
        0,
        1,
        2,
        3,
    }


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(1e-9, {1}), (0.6, {1}), (0.7, {1, 3}), (0.9, {1, 3, 2}), (1.0, {0, 1, 2, 3})],
)
def test_top_p_keeps_the_fewest_that_reach_it(top_p, kept):
    # Probabilities of the first sequence: 1: 0.644, 3: 0.237, 2: 0.087, 0: 0.032.
    drawn = picks(Sampler(SamplingOptions(temperature=1.0, top_p=top_p)), times=1000)
    assert {pick[0] for pick in drawn} == kept


def test_top_p_counts_what_top_k_left():
    # Of 1 and 3 alone the likelier has 0.731, so that 0.7 keeps only it.
    drawn = picks(Sampler(SamplingOptions(temperature=1.0, top_k=2, top_p=0.7)))
    assert {pick[0] for pick in drawn} == {1}


def test_tiny_temperature_is_greedy_and_does_not_overflow():
    assert set(picks(Sampler(SamplingOptions(temperature=1e-40)), times=5)) == {(1, 0)}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_are_refused(bad, temperature):
    logits = LOGITS.clone()
    logits[1, 2] = bad
    with pytest.raises(NumericsError, match="rank 0"):
        Sampler(SamplingOptions(temperature=temperature)).pick(logits)
