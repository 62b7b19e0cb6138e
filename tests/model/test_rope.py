"""Frequencies and rotation against Transformers' own."""

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from tpi.model.rope import Rope, apply_rope
from tpi.model_config import parse_config

PARAMETERS = {
    "default": {"rope_type": "default", "rope_theta": 10000.0},
    "linear": {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.5},
    "llama3": {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
    },
}  # fmt: skip


def both(kind):
    theirs = LlamaConfig(
        hidden_size=256, num_attention_heads=4, num_key_value_heads=2, head_dim=32,
        rope_parameters=PARAMETERS[kind],
    )  # fmt: skip
    raw = theirs.to_dict() | {"architectures": ["LlamaForCausalLM"]}
    return LlamaRotaryEmbedding(theirs), Rope(parse_config(raw, "test"))


@pytest.mark.parametrize("kind", PARAMETERS)
def test_rotation_is_that_of_transformers(kind):
    theirs, ours = both(kind)
    q = torch.randn(2, 9, 4, 32, generator=torch.Generator().manual_seed(0))
    positions = torch.arange(1000, 1009)
    cos, sin = theirs(q, positions.unsqueeze(0))
    expected, _ = apply_rotary_pos_emb(q, q, cos, sin, unsqueeze_dim=2)
    got = apply_rope(q, *ours.angles(positions.float()))
    assert (got - expected).abs().max() <= 1e-6 * expected.abs().max()


def test_each_sequence_has_its_own_positions():
    _, rope = both("llama3")
    x = torch.randn(2, 3, 4, 32)
    positions = torch.tensor([[0.0, 1.0, 2.0], [7.0, 8.0, 9.0]])
    together = apply_rope(x, *rope.angles(positions))
    for b in range(2):
        assert torch.equal(
            together[b : b + 1], apply_rope(x[b : b + 1], *rope.angles(positions[b]))
        )


def test_16_bit_input_is_rotated_in_float32_and_comes_back_as_it_was():
    _, rope = both("default")
    x = torch.randn(1, 3, 2, 32).bfloat16()
    angles = rope.angles(torch.arange(3.0))
    got = apply_rope(x, *angles)
    assert torch.equal(got, apply_rope(x.float(), *angles).bfloat16())


def test_input_is_left_alone():
    _, rope = both("default")
    x = torch.randn(1, 3, 2, 32)
    before = x.clone()
    apply_rope(x, *rope.angles(torch.arange(3.0))).zero_()
    assert torch.equal(x, before)
