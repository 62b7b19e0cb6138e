"""The paper's propositions 3 to 6, and the replay of the window that corrects them. Pure.

`published_*` is what arXiv:2410.00531 says, letter by letter. Ours, which the engine obeys and the
harness believes: for time `predict_step`, which replays the window's rule block by block, with the
finite window and the blocks that the propositions leave out; for memory `tpi/planner/memory.py`; for
allreduces `tpi/comm/allreduces/`. Times are seconds, sizes bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tpi.model_config import ModelConfig

# Cycles that `predict_step` replays; the last one is the steady state.
_CYCLES = 4


@dataclass(frozen=True, slots=True)
class LayerTimes:
    """What one layer takes on one device: t in the paper is computing, tau is loading.

    Units: seconds.
    """

    attn_s: float
    ffn_s: float
    allreduce_s: float
    attn_load_s: float
    ffn_load_s: float


def published_loose_steady_state(times: LayerTimes, num_layers: int) -> bool:
    """Return whether loading is hidden, one stall at the start allowed.

    Source: arXiv:2410.00531, Prop. 3, eq. (4) and, for every layer, (5) or (6). Its proof ignores
    the window's size and the embedding and head; `predict_step` does not.
    """
    return _eq_4(times) and all(
        published_eq_5(times, n) or published_eq_6(times, n) for n in range(1, num_layers + 1)
    )


def _eq_4(t: LayerTimes) -> bool:
    return t.attn_s + t.ffn_s + 2 * t.allreduce_s >= t.ffn_load_s + t.attn_load_s


def published_eq_5(t: LayerTimes, layer: int) -> bool:
    """Eq. (5) for `layer` = 1, 2, ...: the loads up to this FFN block fit before it.

    Source: arXiv:2410.00531, Prop. 3, case 1 (the first FFN block does not stall).
    """
    computing = layer * t.attn_s + (layer - 1) * t.ffn_s + (2 * layer - 1) * t.allreduce_s
    return computing >= layer * t.ffn_load_s + (layer - 1) * t.attn_load_s


def published_eq_6(t: LayerTimes, layer: int) -> bool:
    """Eq. (6) for `layer` = 1, 2, ...: the same after one stall at the first FFN block.

    Source: arXiv:2410.00531, Prop. 3, case 2.
    """
    computing = (layer - 1) * t.attn_s + layer * t.ffn_s + (2 * layer - 1) * t.allreduce_s
    return computing >= (layer - 1) * t.ffn_load_s + layer * t.attn_load_s


def published_tight_steady_state(t: LayerTimes) -> bool:
    """Return whether every single load is hidden by the block before it.

    Source: arXiv:2410.00531, Prop. 4. Sufficient for any window; see `ours_tight_steady_state`.
    """
    return t.attn_s + t.allreduce_s >= t.ffn_load_s and t.ffn_s + t.allreduce_s >= t.attn_load_s


def ours_tight_steady_state(t: LayerTimes) -> bool:
    """Return whether loading is hidden with window 2 (layers only, in the steady state).

    A block gives its space back before its allreduce, so the load of the block after the next has
    two allreduces and one block of computing to hide behind; Prop. 4 counts one allreduce. What
    Prop. 4 leaves out is that one disk serves both kinds, eq. (4). Exact: `predict_step` agrees.
    """
    return (
        t.attn_s + 2 * t.allreduce_s >= t.ffn_load_s
        and t.ffn_s + 2 * t.allreduce_s >= t.attn_load_s
        and _eq_4(t)
    )


def published_retention_steady_state(t: LayerTimes, num_layers: int, period: int) -> bool:
    """Return whether loading is hidden when one FFN block of every `period` is retained.

    Source: arXiv:2410.00531, Prop. 6, eq. (9) and (10); retained are layers 1 + k * period, so
    that ceil(l / period) of the first l FFN blocks need no loading.
    """
    for n in range(1, num_layers + 1):
        ffn_loads = (n - -(-n // period)) * t.ffn_load_s
        eq_9 = n * (t.attn_s + t.ffn_s + 2 * t.allreduce_s) >= ffn_loads + n * t.attn_load_s
        computing = n * t.attn_s + (n - 1) * t.ffn_s + (2 * n - 1) * t.allreduce_s
        if not (eq_9 and computing >= ffn_loads + (n - 1) * t.attn_load_s):
            return False
    return True


def published_stalls(t: LayerTimes, num_layers: int) -> list[float]:
    """Return how long each block after the first waits for its load, with an endless window.

    The slack x follows x <- max(0, x + t_block + t_allreduce - tau_next); what would be negative
    is the stall. Blocks: FFN 1, attention 2, FFN 2, ...

    Source: arXiv:2410.00531, proof of Prop. 3.
    """
    stalls, slack = [], 0.0
    for index in range(1, 2 * num_layers):
        is_ffn = index % 2 == 1
        computing = (t.attn_s if is_ffn else t.ffn_s) + t.allreduce_s
        slack += computing - (t.ffn_load_s if is_ffn else t.attn_load_s)
        stalls.append(max(0.0, -slack))
        slack = max(0.0, slack)
    return stalls


def published_block_bytes(
    config: ModelConfig, kv_heads: float, ffn_columns: float
) -> dict[str, float]:
    """Return bytes in float32 of the paper's four blocks on a device with a share of the model.

    Args:
        config: Of the whole model.
        kv_heads: The device's; each comes with its query heads. Not whole where p is not.
        ffn_columns: The device's.

    Source: arXiv:2410.00531, Table 4: preprocess hv, attention 2 (a + b) h^2 p / a + h, FFN
    3 h s p + h, postprocess hv + h, where b p are the KV heads and s p the columns. h / a is the
    size of a head. Ours: `tpi.planner.memory.block_bytes`, from the files' layout; there the
    embedding is read by row and the head is a run of tiles.
    """
    width = config.hidden_size
    table = 4 * width * config.vocab_size
    heads = kv_heads * (config.q_per_kv + 1)
    return {
        "preprocess": table,
        "attention": 4 * (2 * heads * config.head_size * width + width),
        "ffn": 4 * (3 * width * ffn_columns + width),
        "postprocess": table + 4 * width,
    }


def published_peak_bytes(
    config: ModelConfig, share: float, window: int, *, is_master: bool, gamma: float = 1.0
) -> float:
    """Return the peak memory of a device in float32, with `gamma` for whatever else there is.

    Source: arXiv:2410.00531, Prop. 5, eq. (7) for the master and (8) for a worker. No gamma is
    given; the one that fits the paper's tables runs from 1.4 to 1.8, and for window 2 eq. (7)
    does not depend on the share although the measurements do. Ours: `tpi.planner.memory`.
    """
    size = published_block_bytes(config, share * config.num_kv_heads, share * config.ffn_size)
    if not is_master:
        return gamma * (window // 2 * size["attention"] + (window + 1) // 2 * size["ffn"])
    if window == 1:
        return gamma * size["postprocess"]
    blocks = (window - 2) // 2 * size["attention"] + (window - 1) // 2 * size["ffn"]
    # At a token's end: the head of this token and the embedding of the next.
    return gamma * (size["preprocess"] + size["postprocess"] + blocks)


@dataclass(frozen=True, slots=True)
class BlockTimes:
    """One block of a step.

    Attributes:
        compute_s: While the block is held.
        after_s: After its space was given back, until the next block is wanted: the allreduce.
        load_s: Reading it; None if it is retained.
    """

    compute_s: float
    after_s: float
    load_s: float | None


@dataclass(frozen=True, slots=True)
class StepTimes:
    """A predicted step.

    Attributes:
        first_s: The first step, from an empty window.
        step_s: A step in the steady state.
        stall_s: Of it, waiting for weights.
        bound_s: What no window can beat: the larger of all computing and all loading.
    """

    first_s: float
    step_s: float
    stall_s: float
    bound_s: float

    @property
    def is_steady(self) -> bool:
        """Whether loading is hidden: stalls are below 1 % of the step."""
        return self.stall_s <= 0.01 * self.step_s


def predict_step(blocks: Sequence[BlockTimes], window: int | None) -> StepTimes:
    """Replay the window's rule: block i loads once i - 1 is loaded and i - window released.

    i counts streamed blocks only. This is Prop. 3 with what it leaves out: the window's size, the
    head's tiles, retained blocks, the next step's first blocks loading during this one. A block
    is released when its computing ends, before its allreduce. With window None everything is
    resident and nothing stalls.
    """
    streamed = [b for b in blocks if b.load_s is not None]
    if window is None or window >= len(streamed):
        total = sum(b.compute_s + b.after_s for b in blocks)
        return StepTimes(total, total, 0.0, total)
    now = loader_free = 0.0
    released: list[float] = []
    ends, stalls = [0.0], []
    for _ in range(_CYCLES):
        stall = 0.0
        for block in blocks:
            if block.load_s is not None:
                position = len(released)
                room = released[position - window] if position >= window else 0.0
                loader_free = max(loader_free, room) + block.load_s
                stall += max(0.0, loader_free - now)
                now = max(now, loader_free)
                released.append(now + block.compute_s)
            now += block.compute_s + block.after_s
        ends.append(now)
        stalls.append(stall)
    computing = sum(b.compute_s + b.after_s for b in blocks)
    loading = sum(b.load_s for b in streamed if b.load_s is not None)
    return StepTimes(ends[1], ends[-1] - ends[-2], stalls[-1], max(computing, loading))
