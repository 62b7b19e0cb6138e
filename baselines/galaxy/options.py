"""The options of Galaxy."""

from typing import ClassVar

from baselines.options import Shared
from baselines.validators import check_flag


class GalaxyOptions(Shared, frozen=True, kw_only=True):
    """Weights are resident, and what is summed in decoding goes round the ring, unrounded."""

    fixed: ClassVar = {
        "window": None, "memory_budget": None, "allreduce": "ring", "wire_dtype": "float32"
    }  # fmt: skip
    told: ClassVar = ("overlap",)
    shown: ClassVar = ("overlap",)
    about: ClassVar = {"overlap": "of ring steps and products in prefill"}
    where: ClassVar = "systems.galaxy."
    overlap: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flag(f"{self.where}overlap", self.overlap)
