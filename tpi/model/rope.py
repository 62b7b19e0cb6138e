"""Rotary position embedding: angles once a step, applied to queries and keys in every layer.

The frequencies are those of Transformers' `default`, `linear` and `llama3` rope types, in the
same float32 arithmetic. There is no table: angles of a step's positions are a handful of
operations, shared by all layers.
"""

import math

import torch

from tpi.model_config import ModelConfig, RopeScaling


def inverse_frequencies(config: ModelConfig) -> torch.Tensor:
    """Radians per position of each pair of dimensions.

    Shapes: (E/2,) float32.
    Source: transformers/modeling_rope_utils.py (5.23).
    """
    exponents = torch.arange(0, config.head_size, 2, dtype=torch.int64).float() / config.head_size
    frequencies = 1.0 / (config.rope_theta**exponents)
    if config.rope.kind == "linear":
        return frequencies / config.rope.factor
    if config.rope.kind == "llama3":
        return _llama3(frequencies, config.rope)
    return frequencies


def _llama3(frequencies: torch.Tensor, scaling: RopeScaling) -> torch.Tensor:
    """Slow down long waves by `factor`, keep short ones, and blend between."""
    length, low, high = (
        scaling.original_max_positions, scaling.low_freq_factor, scaling.high_freq_factor,
    )  # fmt: skip
    wavelengths = 2 * math.pi / frequencies
    scaled = torch.where(wavelengths > length / low, frequencies / scaling.factor, frequencies)
    smooth = (length / wavelengths - low) / (high - low)
    blended = (1 - smooth) * scaled / scaling.factor + smooth * scaled
    is_medium = (wavelengths >= length / high) & (wavelengths <= length / low)
    return torch.where(is_medium, blended, scaled)


class Rope:
    """The rotation of one model."""

    def __init__(self, config: ModelConfig) -> None:
        self._frequencies = inverse_frequencies(config)

    def angles(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and signed sines for `apply_rope`.

        Shapes: (S,) or (B, S) float32 -> two of (S, 1, E) or (B, S, 1, E) float32.
        """
        angles = positions.unsqueeze(-1) * self._frequencies
        cos, sin = angles.cos(), angles.sin()
        # The sign of "rotate half" sits in the sines: one operation less in every layer.
        return torch.cat((cos, cos), -1).unsqueeze(-2), torch.cat((-sin, sin), -1).unsqueeze(-2)


def apply_rope(x_BSHE: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate each head by its position's angles, in float32, into a new tensor.

    Shapes: (B, S, H, E) of any float dtype -> same shape and dtype.
    """
    wide = x_BSHE.float()
    half = x_BSHE.shape[-1] // 2
    return (wide * cos).addcmul_(wide.roll(half, -1), sin).to(x_BSHE.dtype)
