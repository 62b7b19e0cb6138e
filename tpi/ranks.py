"""Who this process is among the devices that serve one model."""

from dataclasses import dataclass

MASTER_RANK = 0


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process's rank and the number of ranks; rank 0 is the master."""

    rank: int
    world_size: int

    def __post_init__(self) -> None:
        if self.world_size < 1:
            raise ValueError(f"world_size must be >= 1, got {self.world_size}")
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank must be in 0..{self.world_size - 1}, got {self.rank}")

    @property
    def is_master(self) -> bool:
        """Whether this rank holds prompt, tokenizer, embedding and LM head."""
        return self.rank == MASTER_RANK

    @property
    def workers(self) -> range:
        """All ranks but the master."""
        return range(1, self.world_size)

    @property
    def peers(self) -> tuple[int, ...]:
        """All ranks but this one, ascending."""
        return tuple(r for r in range(self.world_size) if r != self.rank)
