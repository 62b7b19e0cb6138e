"""What ranks sum in tests, and what must come of it."""

import torch


def part(rank: int, count: int) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(100 * rank + count % 97))


def wire(values: torch.Tensor, dtype: str) -> torch.Tensor:
    return values.to(getattr(torch, dtype)).to(torch.float32)


def sum_by_rank(world_size: int, count: int, dtype: str) -> torch.Tensor:
    """The sum as documented for star, direct and exchange, to the bit."""
    if world_size == 1:
        return part(0, count)
    total = wire(part(0, count), dtype)
    for rank in range(1, world_size):
        total = total + wire(part(rank, count), dtype)
    return wire(total, dtype)
