"""The KV cache of one rank: keys and values of its own KV heads, for every layer.

Allocated once for the largest batch and length of the session; memory becomes resident only as
tokens are written. `store` appends a step's keys and values and gives back everything so far.
"""

import torch


class KvCache:
    """Keys and values of every layer that this rank holds heads of; without heads, of none."""

    def __init__(
        self, *, num_layers: int, local_num_kv_heads: int, head_size: int, max_batch: int,
        max_tokens: int, dtype: torch.dtype,
    ) -> None:  # fmt: skip
        self.max_batch = max_batch
        self.max_tokens = max_tokens
        # Per layer 2 x B x K x T x E: heads outermost, so that a head's keys are one matrix.
        shape = (num_layers, 2, max_batch, local_num_kv_heads, max_tokens, head_size)
        self._cache = torch.empty(shape, dtype=dtype)

    def store(
        self, layer: int, start: int, k_BSKE: torch.Tensor, v_BSKE: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write keys and values at positions `start`.. and return all up to their end.

        Shapes: (B, S, K, E) twice -> (B, K, T, E) views twice, T = start + S.
        """
        batch, length = k_BSKE.shape[:2]
        cached = self._cache[layer, :, :batch, :, : start + length]
        cached[0, :, :, start:].copy_(k_BSKE.transpose(1, 2))
        cached[1, :, :, start:].copy_(v_BSKE.transpose(1, 2))
        return cached[0], cached[1]
