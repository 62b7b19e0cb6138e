"""The blocks that a rank of the authors' implementation holds.

The master holds the whole embedding and the whole head. KV groups and FFN columns are each dealt
evenly, the remainder to the last ranks.
"""

from tpi.model_config import ModelConfig
from tpi.planner.propositions import published_block_bytes
from tpi.ranks import MASTER_RANK


def deal(total: int, world_size: int) -> tuple[int, ...]:
    """Divide as the authors' code does: evenly, the remainder one each to the last ranks."""
    each, left = divmod(total, world_size)
    return tuple(each + (rank >= world_size - left) for rank in range(world_size))


def block_bytes(config: ModelConfig, world_size: int, rank: int) -> tuple[float, ...]:
    """Return the bytes of a rank's blocks in float32, in the order of a step."""
    kv_heads = deal(config.num_kv_heads, world_size)[rank]
    columns = deal(config.ffn_size, world_size)[rank]
    size = published_block_bytes(config, kv_heads, columns)
    layers = (size["attention"], size["ffn"]) * config.num_layers
    if rank != MASTER_RANK:
        return layers
    return (size["preprocess"], *layers, size["postprocess"])
