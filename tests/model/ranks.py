"""All ranks of a model in one process: blocks in memory, ranks as threads that sum at a barrier."""

import functools
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open

from tpi.model.llama import Llama, Reduce
from tpi.model_config import ModelConfig, load_config
from tpi.trace import Tracer
from tpi.weights.shard import BlockId, ShardPlan, SourceSlice, make_shard_plan, rank_blocks

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@functools.lru_cache(maxsize=4)
def checkpoint_tensors(folder: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return tensors


def cut(tensors: Mapping[str, torch.Tensor], source: SourceSlice) -> torch.Tensor:
    whole = tensors[source.name]
    assert whole.shape == source.shape
    part = whole[slice(*source.rows)]
    return part if source.cols is None else part[:, slice(*source.cols)].contiguous()


class MemoryBlocks:
    """Blocks of one rank in memory; each `hold` lends a copy that is poisoned when it ends.

    `held` records the order in which blocks were asked for.
    """

    def __init__(self, blocks: Mapping[BlockId, Mapping[str, torch.Tensor]]) -> None:
        self.blocks = blocks
        self.held: list[BlockId] = []

    @contextmanager
    def hold(self, block: BlockId) -> Iterator[Mapping[str, torch.Tensor]]:
        self.held.append(block)
        lent = {name: tensor.clone() for name, tensor in self.blocks[block].items()}
        try:
            yield lent
        finally:
            for tensor in lent.values():
                tensor.fill_(torch.nan)


def cut_blocks(folder: Path, plan: ShardPlan, rank: int, dtype: str) -> MemoryBlocks:
    tensors = checkpoint_tensors(folder)
    specs = rank_blocks(load_config(folder), plan, rank, dtype)
    return MemoryBlocks(
        {
            spec.id: {t.name: cut(tensors, t.source).to(DTYPES[dtype]) for t in spec.tensors}
            for spec in specs
        }
    )


class BarrierSum:
    """A reduce for ranks that are threads: everybody adds everything up, in the same order."""

    def __init__(self, world_size: int) -> None:
        self._barrier = threading.Barrier(world_size)
        self._partials: list[torch.Tensor | None] = [None] * world_size
        self.calls: list[tuple[int, str, bool]] = []  # as rank 0 saw them

    def of_rank(self, rank: int) -> Reduce:
        def reduce(partial_BSD: torch.Tensor, layer: int, kind: str, last: bool) -> None:
            assert partial_BSD.dtype == torch.float32
            assert partial_BSD.is_contiguous()
            if rank == 0:
                self.calls.append((layer, kind, last))
            self._partials[rank] = partial_BSD.clone()
            self._barrier.wait(10)
            total = torch.stack([p for p in self._partials if p is not None]).sum(0)
            self._barrier.wait(10)
            # Where only the master gets the result, a worker must not depend on it.
            partial_BSD.copy_(total if rank == 0 or not last else torch.full_like(total, 9e9))

        return reduce


class Ranks:
    """A model on `world_size` ranks; `forward` and `head` as one rank would see them."""

    def __init__(
        self,
        folder: Path,
        world_size: int = 1,
        *,
        weights: Sequence[float] | None = None,
        compute: torch.dtype = torch.float32,
        storage: str | None = None,
        max_batch: int = 1,
        max_tokens: int = 64,
    ) -> None:
        self.config: ModelConfig = load_config(folder)
        self.plan = make_shard_plan(self.config, world_size, weights)
        storage = storage or self.config.dtype
        self.blocks = [cut_blocks(folder, self.plan, r, storage) for r in range(world_size)]
        self.models = [
            Llama(
                self.config, share, compute_dtype=compute, max_batch=max_batch,
                max_tokens=max_tokens, tracer=Tracer(),
            )
            for share in self.plan.shares
        ]  # fmt: skip
        self.sum = BarrierSum(world_size)
        self.embedding = self.blocks[0].blocks[BlockId("embed", 0)]["weight"].float()

    def reset(self, batch: int = 1, pads: Sequence[int] | None = None) -> None:
        for model in self.models:
            model.reset(batch, pads)

    def forward(self, ids_BS: torch.Tensor, start: int) -> torch.Tensor:
        def of_rank(rank: int) -> torch.Tensor:
            reduce = self.sum.of_rank(rank)
            return self.models[rank].forward(hidden_BSD, start, self.blocks[rank], reduce)

        hidden_BSD = self.embedding[ids_BS]
        with ThreadPoolExecutor(len(self.models)) as pool:
            results = list(pool.map(of_rank, range(len(self.models))))
        return results[0]

    def head(self, hidden_BD: torch.Tensor) -> torch.Tensor:
        num_tiles = sum(block.kind == "head" for block in self.blocks[0].blocks)
        return self.models[0].head(hidden_BD, self.blocks[0], num_tiles)

    def logits(self, ids_BS: torch.Tensor, start: int = 0) -> torch.Tensor:
        """Logits of all positions of a step. Shapes: (B, S) -> (B, S, V)."""
        hidden_BSD = self.forward(ids_BS, start)
        return torch.stack([self.head(hidden_BSD[:, s]) for s in range(ids_BS.shape[1])], 1)


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got - expected).abs().max() / expected.abs().max())
