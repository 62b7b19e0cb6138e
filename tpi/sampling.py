"""Picking the next token from logits, on the master only.

Greedy where the temperature is 0. Otherwise logits are divided by the temperature, cut to the
`top_k` largest, then to the fewest whose probabilities reach `top_p`, and drawn from with a
generator of our own, so that a seed decides the text whatever else uses torch's random numbers.
"""

import math

import torch

from tpi.errors import NumericsError
from tpi.options import GREEDY, SamplingOptions


class Sampler:
    """Picks one token per sequence and step."""

    def __init__(self, options: SamplingOptions = GREEDY) -> None:
        self._temperature = options.temperature
        self._top_k = options.top_k
        self._top_p = options.top_p
        self._generator = torch.Generator().manual_seed(options.seed)

    def pick(self, logits_BV: torch.Tensor) -> tuple[int, ...]:
        """The next token of each sequence; of equal logits greedy takes the lowest id.

        Shapes: (B, V) float32 -> B token ids.

        Raises:
            NumericsError: a logit is NaN or infinite.
        """
        # One sum instead of a look at every logit: any NaN or infinity shows in it.
        if not math.isfinite(float(logits_BV.sum(dtype=torch.float64))):
            raise NumericsError("the logits on rank 0 hold NaN or infinity")
        if self._temperature == 0:
            return tuple(logits_BV.argmax(-1).tolist())
        # From the largest on, so that no temperature, however small, overflows.
        shifted_BV = logits_BV - logits_BV.amax(-1, keepdim=True)
        values_BV, ids_BV = self._cut(shifted_BV / self._temperature)
        drawn_B1 = torch.multinomial(values_BV, 1, generator=self._generator)
        return tuple(ids_BV.gather(-1, drawn_B1).squeeze(-1).tolist())

    def _cut(self, logits_BV: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Probabilities, largest first and 0 for what is cut off, and their token ids."""
        vocab = logits_BV.shape[-1]
        values, ids = logits_BV.topk(min(self._top_k or vocab, vocab), -1)
        probabilities = values.softmax(-1)
        before = probabilities.cumsum(-1) - probabilities  # of all likelier tokens
        kept = before < self._top_p
        kept[:, 0] = True
        return probabilities * kept, ids
