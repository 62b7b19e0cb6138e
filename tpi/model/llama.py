"""The decoder on one rank's slices: attention and FFN blocks, and the LM head on the master.

`Llama` owns the KV cache and the arithmetic. Weights come block by block from a `BlockSource` and
are gone when their `hold` ends; nothing computed here is a view of them. A `Reduce` sums the ranks'
partial results once the block has been given back, so that the next one loads while the wire is
busy. The residual stream is float32 on every rank, whatever the compute dtype. The steps of
`Llama.forward` are public for engines that walk the layers in another way.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F

from tpi.errors import ConfigError
from tpi.model.attention import attend, make_segments
from tpi.model.kernels import Kernels
from tpi.model.kv import KvCache
from tpi.model.rope import Rope, apply_rope
from tpi.model_config import ModelConfig
from tpi.trace import Tracer
from tpi.weights.shard import BlockId, RankShare
from tpi.weights.window import BlockSource

Weights = Mapping[str, torch.Tensor]
Angles = tuple[torch.Tensor, torch.Tensor]  # cosines and signed sines of a step's positions


class Reduce(Protocol):
    """How the ranks' partial results become their sum, in place."""

    def __call__(self, partial_BSD: torch.Tensor, layer: int, kind: str, last: bool, /) -> None:
        """Sum over ranks; where `last`, only the master needs the result."""
        ...


class Llama:
    """The forward pass of one rank.

    Args:
        config: The whole model's numbers.
        share: This rank's heads and FFN columns.
        compute_dtype: float32 or bfloat16.
        max_batch: Most sequences at once.
        max_tokens: Most tokens of a sequence, prompt and new ones together.
        tracer: Gets a span "compute" per block.
        layers: The layers that this rank computes; None for all.
    """

    def __init__(
        self,
        config: ModelConfig,
        share: RankShare,
        *,
        compute_dtype: torch.dtype,
        max_batch: int,
        max_tokens: int,
        tracer: Tracer,
        layers: range | None = None,
    ) -> None:
        self._config = config
        self._share = share
        self._layers = range(config.num_layers) if layers is None else layers
        self._tracer = tracer
        self.compute_dtype = compute_dtype
        self._kernels = Kernels(compute_dtype)
        self._rope = Rope(config)
        self._segments = make_segments(share.local_kv_of_q(config))
        self._cache = KvCache(
            num_layers=len(self._layers) if share.local_num_heads else 0,
            local_num_kv_heads=share.local_num_kv_heads,
            head_size=config.head_size,
            max_batch=max_batch,
            max_tokens=max_tokens,
            dtype=compute_dtype,
        )
        self.reset(max_batch, None)

    def reset(self, batch: int, pads: Sequence[int] | None) -> None:
        """Begin a request of `batch` sequences, padded on the left by `pads` (None for none).

        Raises:
            ConfigError: more sequences than the cache was made for, or pads that fit no batch.
        """
        if not 1 <= batch <= self._cache.max_batch:
            raise ConfigError(f"batch of {batch} sequences, max_batch is {self._cache.max_batch}")
        if pads is not None and (len(pads) != batch or min(pads) < 0):
            raise ConfigError(f"pads {list(pads)} do not fit a batch of {batch} sequences")
        self._batch = batch
        self._pads = tuple(pads) if pads is not None and any(pads) else None

    def forward(
        self, hidden_BSD: torch.Tensor, start: int, blocks: BlockSource, reduce: Reduce
    ) -> torch.Tensor:
        """Walk the layers with S new positions per sequence after `start` cached ones.

        Only the master's result is whole: the last sum need reach nobody else.

        Shapes: (B, S, D) float32 -> (B, S, D) float32, new memory.

        Raises:
            ConfigError: the positions do not fit the cache or the batch is not that of `reset`.
        """
        batch, length, _ = hidden_BSD.shape
        angles = self.begin_step(batch, length, start)
        last_layer = self._config.num_layers - 1
        hidden_BSD = hidden_BSD.clone()
        for layer in self._layers:
            partial_BSD = self._attn(hidden_BSD, layer, start, angles, blocks)
            reduce(partial_BSD, layer, "attn", False)
            hidden_BSD += partial_BSD
            del partial_BSD  # at a long prompt it is large, and the next block makes its own
            partial_BSD = self._ffn(hidden_BSD, layer, blocks)
            reduce(partial_BSD, layer, "ffn", layer == last_layer)
            hidden_BSD += partial_BSD
        return hidden_BSD

    def head(self, hidden_BD: torch.Tensor, blocks: BlockSource, num_tiles: int) -> torch.Tensor:
        """Final norm and LM head, tile by tile (master only).

        Shapes: (B, D) float32 -> (B, V) float32.
        """
        logits_BV = torch.empty(hidden_BD.shape[0], self._config.vocab_size)
        row = 0
        x_BD = hidden_BD
        for tile in range(num_tiles):
            with blocks.hold(BlockId("head", tile)) as weights:
                begin_ns = time.monotonic_ns()
                if tile == 0:
                    x_BD = self.norm(hidden_BD, weights["norm"]).to(self.compute_dtype)
                (part_BV,) = self._kernels.project(x_BD, weights, "weight")
                logits_BV[:, row : row + part_BV.shape[1]] = part_BV
                row += part_BV.shape[1]
                end_ns = time.monotonic_ns()
            self._tracer.add("compute", begin_ns, end_ns, "head", tile)
        return logits_BV

    def begin_step(self, batch: int, length: int, start: int) -> Angles:
        """Check that a step's positions can be computed, and return their rotary angles.

        Raises:
            ConfigError: the positions do not fit the cache or the batch is not that of `reset`.
        """
        if batch != self._batch:
            raise ConfigError(f"step of {batch} sequences in a request of {self._batch}")
        if start < 0 or start + length > self._cache.max_tokens:
            raise ConfigError(
                f"positions {start} to {start + length} do not fit the KV cache of "
                f"{self._cache.max_tokens} tokens"
            )
        return self._rope.angles(self._positions(start, length))

    def _positions(self, start: int, length: int) -> torch.Tensor:
        positions_S = torch.arange(start, start + length, dtype=torch.float32)
        if self._pads is None:
            return positions_S
        pads_B1 = torch.tensor(self._pads, dtype=torch.float32).unsqueeze(1)
        return (positions_S - pads_B1).clamp_(min=0)

    def _attn(
        self, hidden_BSD: torch.Tensor, layer: int, start: int, angles: Angles, blocks: BlockSource
    ) -> torch.Tensor:
        if not self._share.local_num_heads:
            return torch.zeros_like(hidden_BSD)
        with blocks.hold(BlockId("attn", layer)) as weights:
            begin_ns = time.monotonic_ns()
            q_BShE, k_BSKE, v_BSKE = self.qkv(self._normed(hidden_BSD, weights), weights)
            q_BShE, k_BSKE = apply_rope(q_BShE, *angles), apply_rope(k_BSKE, *angles)
            attn_Nh = self.attend(q_BShE, k_BSKE, v_BSKE, layer, start)
            partial_ND = self.project_out(attn_Nh, weights, "o")
            end_ns = time.monotonic_ns()
        self._tracer.add("compute", begin_ns, end_ns, "attn", layer)
        return partial_ND.view_as(hidden_BSD)

    def _ffn(self, hidden_BSD: torch.Tensor, layer: int, blocks: BlockSource) -> torch.Tensor:
        if not self._share.local_ffn_size:
            return torch.zeros_like(hidden_BSD)
        with blocks.hold(BlockId("ffn", layer)) as weights:
            begin_ns = time.monotonic_ns()
            gate_Nf = self.gate_up(self._normed(hidden_BSD, weights), weights)
            partial_ND = self.project_out(gate_Nf, weights, "down")
            end_ns = time.monotonic_ns()
        self._tracer.add("compute", begin_ns, end_ns, "ffn", layer)
        return partial_ND.view_as(hidden_BSD)

    # --- the steps of a block --------------------------------------------------------------

    def norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Root-mean-square norm over the last dimension, in float32, into new memory."""
        size = x.shape[-1]
        if x.numel() == size:  # one vector: half the time of F.rms_norm
            flat = x.view(-1)
            scale: float = (float(flat.dot(flat)) / size + self._config.rms_eps) ** -0.5
            return torch.mul(x, weight).mul_(scale)
        return F.rms_norm(x, (size,), weight.float(), self._config.rms_eps)

    def _normed(self, hidden_BSD: torch.Tensor, weights: Weights) -> torch.Tensor:
        x_BSD = self.norm(hidden_BSD, weights["norm"])
        return x_BSD.view(-1, hidden_BSD.shape[-1]).to(self.compute_dtype)

    def qkv(
        self, x_ND: torch.Tensor, weights: Weights
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values of normed rows, not yet rotated; N = B * S.

        Shapes: (N, D) compute dtype -> (B, S, h, E), (B, S, K, E), (B, S, K, E).
        """
        heads = (self._batch, x_ND.shape[0] // self._batch, -1, self._config.head_size)
        q, k, v = (out.view(heads) for out in self._kernels.project(x_ND, weights, "q", "k", "v"))
        if self._config.qk_norm:
            q = self.norm(q.float(), weights["q_norm"]).to(self.compute_dtype)
            k = self.norm(k.float(), weights["k_norm"]).to(self.compute_dtype)
        return q, k, v

    def attend(
        self, q_BShE: torch.Tensor, k_BSKE: torch.Tensor, v_BSKE: torch.Tensor,
        layer: int, start: int,
    ) -> torch.Tensor:  # fmt: skip
        """Put the keys and values of a whole step into the cache, and attend to all in it.

        Shapes: as `qkv` gives them, queries and keys rotated -> (N, h * E).
        """
        keys_BKTE, values_BKTE = self._cache.store(
            layer - self._layers.start, start, k_BSKE, v_BSKE
        )
        attn_BShE = attend(q_BShE, keys_BKTE, values_BKTE, self._segments, self._pads)
        return attn_BShE.view(-1, attn_BShE.shape[2] * attn_BShE.shape[3])

    def gate_up(self, x_ND: torch.Tensor, weights: Weights) -> torch.Tensor:
        """The gated columns of normed rows. Shapes: (N, D) -> (N, f), both compute dtype."""
        gate_Nf, up_Nf = self._kernels.project(x_ND, weights, "gate", "up")
        return F.silu(gate_Nf, inplace=True).mul_(up_Nf)

    def project_out(self, x_Nf: torch.Tensor, weights: Weights, name: str) -> torch.Tensor:
        """This rank's part of a block's result, by its "o" or "down".

        Shapes: (N, h * E) or (N, f) compute dtype -> (N, D) float32.
        """
        (partial_ND,) = self._kernels.project(x_Nf, weights, name)
        return partial_ND.float()
