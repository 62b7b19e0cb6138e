import math

import pytest

from tpi.comm.allreduces.registry import allreduce_names
from tpi.decode import convert
from tpi.errors import ConfigError
from tpi.options import ComputeOptions, SamplingOptions


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("window", 0, "an integer in 1.."),
        ("window", True, "an integer in 1.."),
        ("memory_budget", -1, "an integer in 1.."),
        ("wire_dtype", "int8", "float32 | bfloat16"),
        ("dtype", "float16", "float32 | bfloat16"),
        ("prefill_chunk", 0, "an integer in 1.."),
        ("max_batch", 1.5, "an integer in 1.."),
        ("max_tokens", None, "an integer in 1.."),
    ],
)
def test_way_of_computing_that_does_not_fit_is_refused_by_name(option, value, expected):
    with pytest.raises(ConfigError) as caught:
        convert({option: value}, ComputeOptions, "spec x", ConfigError)
    assert str(caught.value).startswith(f"spec x: {option} must be {expected}")


@pytest.mark.parametrize("name", ["mesh", "star\n", ""])
def test_unknown_allreduce_is_refused_with_those_there_are(name):
    with pytest.raises(ConfigError, match=r"^spec x: allreduce"):
        convert({"allreduce": name}, ComputeOptions, "spec x", ConfigError)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("temperature", -0.1), ("temperature", math.nan), ("temperature", math.inf),
        ("top_k", -1), ("top_p", 0.0), ("top_p", 1.1), ("top_p", math.nan),
        ("seed", -1), ("seed", 1 << 63),
    ],
)  # fmt: skip
def test_sampling_option_out_of_range_is_refused_by_name(option, value):
    with pytest.raises(ConfigError, match=f"{option} must be"):
        convert({option: value}, SamplingOptions, "spec x", ConfigError)


@pytest.mark.parametrize("algorithm", allreduce_names())
def test_every_allreduce_there_is_can_be_asked_for(algorithm):
    assert ComputeOptions.named_in({"allreduce": algorithm}).allreduce == algorithm


def test_options_are_taken_by_their_name_and_all_blocks_is_a_word():
    asked = {"window": "all", "memory_budget": None, "prefill_chunk": 4, "shares": [1, 2]}
    options = ComputeOptions.named_in(asked, max_tokens=9)
    assert options == ComputeOptions(window=None, prefill_chunk=4, max_tokens=9)
    with pytest.raises(ConfigError, match="window must be an integer"):
        ComputeOptions.named_in({"window": "two"})


def test_a_pass_has_as_many_tokens_as_chunk_and_sequence_allow():
    options = ComputeOptions(prefill_chunk=8, max_tokens=20, max_batch=3)
    assert (options.step_tokens, options.step_rows) == (8, 24)
    assert ComputeOptions(prefill_chunk=8, max_tokens=5).step_tokens == 5
