"""Propositions 3 to 6 of arXiv:2410.00531. Pure; times are seconds, sizes bytes.

`published_*` is what the paper says, letter by letter. The engine obeys and the harness believes
our own: `window_replay.py` for time, `memory.py` for memory, `tpi/comm/allreduces/` for allreduces.
"""

from dataclasses import dataclass

from tpi.model_config import ModelConfig


@dataclass(frozen=True, slots=True)
class LayerTimes:
    """Seconds that one layer takes on one device; in the paper t is computing and tau loading."""

    attn_s: float
    ffn_s: float
    allreduce_s: float
    attn_load_s: float
    ffn_load_s: float


def published_loose_steady_state(times: LayerTimes, num_layers: int) -> bool:
    """Return whether loading is hidden, one stall at the start allowed: Prop. 3, eq. (4) to (6).

    Its proof ignores the window's size and the embedding and head; `predict_step` does not.
    """
    return _eq_4(times) and all(
        published_eq_5(times, n) or published_eq_6(times, n) for n in range(1, num_layers + 1)
    )


def _eq_4(t: LayerTimes) -> bool:
    return t.attn_s + t.ffn_s + 2 * t.allreduce_s >= t.ffn_load_s + t.attn_load_s


def published_eq_5(t: LayerTimes, layer: int) -> bool:
    """Prop. 3, case 1, for `layer` = 1, 2, ...: the loads up to this FFN block fit before it."""
    computing = layer * t.attn_s + (layer - 1) * t.ffn_s + (2 * layer - 1) * t.allreduce_s
    return computing >= layer * t.ffn_load_s + (layer - 1) * t.attn_load_s


def published_eq_6(t: LayerTimes, layer: int) -> bool:
    """Prop. 3, case 2: the same after one stall at the first FFN block."""
    computing = (layer - 1) * t.attn_s + layer * t.ffn_s + (2 * layer - 1) * t.allreduce_s
    return computing >= (layer - 1) * t.ffn_load_s + layer * t.attn_load_s


def published_tight_steady_state(t: LayerTimes) -> bool:
    """Return whether every load is hidden by the block before it: Prop. 4, for any window."""
    return t.attn_s + t.allreduce_s >= t.ffn_load_s and t.ffn_s + t.allreduce_s >= t.attn_load_s


def ours_tight_steady_state(t: LayerTimes) -> bool:
    """Return whether loading is hidden with window 2 (layers only, in the steady state).

    A block gives its space back before its allreduce. So the load of the block after the next has
    two allreduces and one block of computing to hide behind; Prop. 4 counts one allreduce. Prop. 4
    also leaves out that one disk serves both kinds, eq. (4). `predict_step` agrees exactly.
    """
    return (
        t.attn_s + 2 * t.allreduce_s >= t.ffn_load_s
        and t.ffn_s + 2 * t.allreduce_s >= t.attn_load_s
        and _eq_4(t)
    )


def published_retention_steady_state(t: LayerTimes, num_layers: int, period: int) -> bool:
    """Return whether retaining one FFN block of every `period` hides loading: Prop. 6, eq. (9, 10).

    Retained are layers 1 + k * period: ceil(l / period) of the first l FFN blocks need no loading.
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

    From the proof of Prop. 3. The slack x follows x <- max(0, x + t_block + t_allreduce -
    tau_next); where it would be negative is the stall. Blocks: FFN 1, attention 2, FFN 2, ...
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
    """Return float32 bytes of the paper's four blocks on a device with so many heads and columns.

    Table 4: preprocess hv, attention 2 (a + b) h^2 p / a + h, FFN 3 h s p + h, postprocess hv + h,
    where b p are the KV heads (each with its query heads; a fraction where p is one), s p the
    columns and h / a the size of a head. Ours: `tpi.planner.memory.block_bytes`, from the files'
    layout; there the embedding is read by row and the head is a run of tiles.
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
    config: ModelConfig, share: float, window: int, *, is_master: bool
) -> float:
    """Return a device's peak memory in float32: Prop. 5, eq. (7) for the master, (8) for a worker.

    Without its factor gamma for whatever else there is, which the paper does not give; what fits
    its tables runs from 1.4 to 1.8. For window 2 eq. (7) does not depend on the share although the
    measurements do. Ours: `tpi.planner.memory`.
    """
    size = published_block_bytes(config, share * config.num_kv_heads, share * config.ffn_size)
    if not is_master:
        return window // 2 * size["attention"] + (window + 1) // 2 * size["ffn"]
    if window == 1:
        return size["postprocess"]
    blocks = (window - 2) // 2 * size["attention"] + (window - 1) // 2 * size["ffn"]
    # At a token's end: the head of this token and the embedding of the next.
    return size["preprocess"] + size["postprocess"] + blocks
