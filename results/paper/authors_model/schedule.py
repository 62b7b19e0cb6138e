"""The schedule of the authors' own implementation, replayed block by block.

What differs from `tpi/`: a block gives its space back only when the next one has been computed, so
that at window 2 loads hide behind allreduces alone. Embedding and LM head are blocks that are
loaded whole for every token. Weights are stored in 16 bits and cast while loading. Without the
scheduler the same loader loads everything once, during the first pass. Sources: arXiv:2410.00531,
algorithms 1 and 2, and the published code.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from results.paper.authors_model.blocks import block_bytes
from tpi.comm.allreduces.star import Star
from tpi.model_config import ModelConfig

_STORED_SHARE = 0.5  # checkpoints are 16-bit, computing is float32
_STEADY_TOKENS = 3  # after the first: the last is the steady state


@dataclass(frozen=True, slots=True)
class Rates:
    """What decides the times of the authors' implementation on a device, in bytes per second."""

    load_bps: float  # stored weights, from disk through `torch.load` and the cast
    compute_bps: float  # float32 weights through products


@dataclass(frozen=True, slots=True)
class Setup:
    """One run of the authors' implementation; `window` is None without the scheduler."""

    model: ModelConfig
    world_size: int
    window: int | None
    delay_s: float = 0.0  # one way between two devices
    rate_bps: float = 1e12  # of every port


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds to the first token from an empty window, and of a token in the steady state."""

    ttft_s: float
    token_latency_s: float


def replay(setup: Setup, rates: Rates) -> Times:
    """Replay the first tokens on all devices in lock-step.

    The prompt counts as one token: the paper does not give its length, and where loading decides, a
    pass of few tokens takes no longer.
    """
    lists = (block_bytes(setup.model, setup.world_size, rank) for rank in range(setup.world_size))
    # Ranks with the same blocks do the same at the same time.
    ranks = [_Rank(sizes, setup.window, rates) for sizes in dict.fromkeys(lists)]
    ends = [0.0]
    for _ in range(1 + _STEADY_TOKENS):
        ends.append(_pass(setup, ranks, ends[-1]))
    return Times(ends[1], ends[-1] - ends[-2])


@dataclass
class _Rank:
    """One device: a loader that runs ahead as far as the window lets it, and when blocks ended."""

    sizes: Sequence[float]  # of blocks, in bytes of float32
    window: int | None
    rates: Rates
    loader_free_s: float = 0.0
    ends_s: list[float] = field(default_factory=list)

    def run(self, wanted_s: float, *, is_product: bool = True) -> float:
        """Compute the next block, wanted from `wanted_s` on; returns when it ends."""
        index = len(self.ends_s)
        size = self.sizes[index % len(self.sizes)]
        loaded_s = self._load(index, size)
        compute_s = size / self.rates.compute_bps
        self.ends_s.append(max(wanted_s, loaded_s) + (compute_s if is_product else 0.0))
        return self.ends_s[-1]

    def _load(self, index: int, size: float) -> float:
        """When block `index` is there."""
        if self.window is None and index >= len(self.sizes):
            return 0.0
        # A block leaves when the one after it has ended, which makes room for one more.
        before = index - self.window + 1 if self.window is not None else -1
        room_s = self.ends_s[before] if before >= 0 else 0.0
        load_s = size * _STORED_SHARE / self.rates.load_bps
        self.loader_free_s = max(self.loader_free_s, room_s) + load_s
        return self.loader_free_s


def _pass(setup: Setup, ranks: Sequence[_Rank], start_s: float) -> float:
    """One pass of a token through all layers; returns when the next one is known."""
    master, several = ranks[0], setup.world_size > 1
    num_bytes = 4 * setup.model.hidden_size
    sum_s = broadcast_s = 0.0
    if several:
        payload_s = 8 * num_bytes / setup.rate_bps
        broadcast_s = setup.delay_s + (setup.world_size - 1) * payload_s
        sum_s = Star().cost_s(
            world_size=setup.world_size,
            num_bytes=num_bytes,
            delay_s=setup.delay_s,
            rate_bps=setup.rate_bps,
        )
    # A row of the embedding is looked up, nothing is multiplied.
    now_s = master.run(start_s, is_product=False) + broadcast_s
    for _ in range(2 * setup.model.num_layers):
        now_s = max(rank.run(now_s) for rank in ranks) + sum_s
    return master.run(now_s)
