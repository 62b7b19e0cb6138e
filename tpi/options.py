"""How a rank computes, and how tokens are picked: every default, choice and limit stands here.

`ComputeOptions` travels whole from the command line or the configuration to the spec, the engine,
the planner and the simulator. Constraints hold for what is decoded (`tpi.decode`); code that makes
options itself is trusted. No torch.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Final

from msgspec import Meta, Struct

from tpi.comm.allreduces.registry import find_allreduce
from tpi.decode import Count, CountOrZero, NumBytes, Text, convert, one_of
from tpi.errors import ConfigError

COMPUTE_DTYPES: Final = ("float32", "bfloat16")
WIRE_DTYPES: Final = ("float32", "bfloat16")
# How a window over all blocks is written: on the command line, in YAML and in events.
ALL_BLOCKS: Final = "all"


ComputeDtype = Annotated[str, one_of(COMPUTE_DTYPES)]
TokenId = Annotated[int, Meta(ge=0, le=1 << 31)]


class ComputeOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a rank computes, beside its shard.

    With a `memory_budget` the planner picks window and retained blocks, and ignores `window`.
    """

    window: Count | None = 2  # streamed blocks in memory at once; None keeps all weights there
    memory_budget: NumBytes | None = None  # what this device may use
    allreduce: Text = "star"
    wire_dtype: Annotated[str, one_of(WIRE_DTYPES)] = "float32"  # what sums are sent in
    prefill_chunk: Count = 512  # most prompt tokens in one pass
    dtype: ComputeDtype = "float32"  # of the arithmetic; the folder has its own for storage
    max_batch: Count = 1  # most sequences of one request
    max_tokens: Count = 128  # most tokens of a sequence, prompt and new ones together

    def __post_init__(self) -> None:
        find_allreduce(self.allreduce)  # packages may bring more: names are known at run time only

    @property
    def step_tokens(self) -> int:
        """Most tokens of a sequence in one pass."""
        return min(self.prefill_chunk, self.max_tokens)

    @property
    def step_rows(self) -> int:
        """Rows of the largest hidden state: tokens of all sequences in one pass."""
        return self.max_batch * self.step_tokens

    @classmethod
    def named_in(cls, values: Mapping[str, Any], **fixed: Any) -> "ComputeOptions":
        """Take from `values` what has the name of an option; `fixed` ones come first.

        A value None means the default. `window` may be "all", as it is written in YAML.

        Raises:
            ConfigError: A value that does not fit.
        """
        asked = {k: v for k, v in values.items() if k in cls.__struct_fields__ and v is not None}
        asked |= fixed
        if asked.get("window") == ALL_BLOCKS:
            asked["window"] = None
        return convert(asked, cls, "options", ConfigError)


class SamplingOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a token is picked, and which one ends a sequence."""

    temperature: Annotated[float, Meta(ge=0, le=100)] = 0.0  # 0 is greedy; else it divides logits
    top_k: CountOrZero = 0  # draw among the k most likely tokens only; 0 is all
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0  # among the fewest that reach this probability
    seed: Annotated[int, Meta(ge=0, le=(1 << 63) - 1)] = 0
    stop_ids: tuple[TokenId, ...] = ()  # a sequence that makes one of these tokens ends there


GREEDY: Final = SamplingOptions()


def window_word(window: int | None) -> int | str:
    """A window as it is written in YAML and in events."""
    return ALL_BLOCKS if window is None else window
