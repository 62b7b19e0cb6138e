"""The options of each system, checked when they are made, and what a program is told of them.

One dataclass per system, in the words of its page in `conf/systems/`. `compute` makes of them how
a rank computes, `spec` the rest that the program is told (the rest of these is the harness's:
shares are used up by the split, say). Defaults and choices are those of `tpi.options`.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from baselines.validators import check_choice, check_count, check_flag, check_shares, check_size
from tpi.comm.allreduces.registry import find_allreduce
from tpi.options import ALL_BLOCKS, COMPUTE_DTYPES, WIRE_DTYPES, ComputeOptions, window_word

QUANTIZATIONS = ("none", "q8_0", "q4_0")
_DEFAULT = ComputeOptions()


@dataclass
class SystemOptions:
    """What all systems have in common.

    Attributes:
        fixed: How the system computes, whatever it is asked.
        where: What errors put before the name of an option.
    """

    fixed: ClassVar[Mapping[str, Any]] = {}
    where: ClassVar[str] = ""

    @property
    def split(self) -> list[float] | None:
        """How unequal the devices' parts of the model are; None where all are alike."""
        return getattr(self, "shares", None)

    def compute(self, dtype: str, max_tokens: int) -> ComputeOptions:
        """How each rank computes; what the system has no option for is as for `tpi`."""
        run: dict[str, Any] = {"dtype": dtype, "max_tokens": max_tokens}
        own = {name: value for name, value in vars(self).items() if value is not None}
        return ComputeOptions.named_in(run | own, **self.fixed)

    def spec(self, dtype: str) -> dict[str, object]:  # noqa: ARG002 - every system is asked alike
        """What the program is told beside how it computes."""
        return {}


@dataclass
class Chunked(SystemOptions):
    """A long prompt takes several passes."""

    prefill_chunk: int = _DEFAULT.prefill_chunk

    def __post_init__(self) -> None:
        check_count(f"{self.where}prefill_chunk", self.prefill_chunk)


@dataclass
class Shared(Chunked):
    """Devices take unequal parts of the model."""

    shares: list[float] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.shares = None if self.shares is None else check_shares("shares", self.shares)


@dataclass
class ResidentOptions(Shared):
    """TPI-LLM without the memory scheduler: all weights of a rank stay in memory."""

    fixed: ClassVar = {"window": None}
    allreduce: str = _DEFAULT.allreduce
    wire_dtype: str = _DEFAULT.wire_dtype

    def __post_init__(self) -> None:
        super().__post_init__()
        find_allreduce(self.allreduce)
        check_choice("wire_dtype", self.wire_dtype, WIRE_DTYPES)


@dataclass
class WindowOptions(Chunked):
    """TPI-LLM's memory scheduler on one device: the paper's "Transformers + MS"."""

    window: int | str = window_word(_DEFAULT.window)
    memory_budget: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window != ALL_BLOCKS:
            check_count("window", self.window, or_=ALL_BLOCKS)
        if self.memory_budget is not None:
            self.memory_budget = check_size("memory_budget", self.memory_budget)


@dataclass
class TpiOptions(WindowOptions, ResidentOptions):
    """TPI-LLM: tensor parallelism with the memory scheduler."""

    fixed: ClassVar = {}


@dataclass
class GalaxyOptions(Shared):
    """Tensor and sequence parallelism, ring collectives that overlap with products in prefill."""

    fixed: ClassVar = {"window": None, "allreduce": "ring"}
    where: ClassVar = "systems.galaxy."
    overlap: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flag(f"{self.where}overlap", self.overlap)

    def spec(self, dtype: str) -> dict[str, object]:  # noqa: ARG002
        """What the program is told beside how it computes."""
        return {"overlap": self.overlap}


@dataclass
class PipelineOptions(Shared):
    """Layer ranges on devices one after another; `shares` are their memories' proportions."""

    fixed: ClassVar = {"window": None}
    where: ClassVar = "systems.pipeline."

    def spec(self, dtype: str) -> dict[str, object]:  # noqa: ARG002
        """What the program is told beside how it computes."""
        return {"shares": self.shares}


@dataclass
class TransformersOptions(SystemOptions):
    """Transformers on one device; dtype and threads are the run's unless given for it alone."""

    dtype: str | None = None
    threads: int | None = None
    low_cpu_mem_usage: bool = True
    mmap: bool = True

    def __post_init__(self) -> None:
        if self.dtype is not None:
            check_choice("systems.transformers.dtype", self.dtype, COMPUTE_DTYPES)
        if self.threads is not None:
            check_count("systems.transformers.threads", self.threads, high=1024)
        check_flag("systems.transformers.low_cpu_mem_usage", self.low_cpu_mem_usage)
        check_flag("systems.transformers.mmap", self.mmap)

    def spec(self, dtype: str) -> dict[str, object]:  # noqa: ARG002
        """What the program is told beside how it computes."""
        return {"low_cpu_mem_usage": self.low_cpu_mem_usage, "mmap": self.mmap}


@dataclass
class AccelerateOptions(SystemOptions):
    """Accelerate's disk offload; `max_memory` null offloads everything."""

    max_memory: int | None = None

    def __post_init__(self) -> None:
        if self.max_memory is not None:
            self.max_memory = check_size("systems.accelerate.max_memory", self.max_memory)

    def spec(self, dtype: str) -> dict[str, object]:  # noqa: ARG002
        """What the program is told beside how it computes."""
        return asdict(self)


@dataclass
class Accelerate2024Options(SystemOptions):
    """Accelerate as the paper met it: everything is loaded, then offloaded. No options."""


@dataclass
class TransformersTpOptions(SystemOptions):
    """Transformers' own tensor parallelism. No options."""


@dataclass
class LlamacppOptions(SystemOptions):
    """llama.cpp on one device; without quantization the file is of the compute dtype."""

    mmap: bool = True
    quantization: str = "none"

    def __post_init__(self) -> None:
        check_flag("systems.llamacpp.mmap", self.mmap)
        check_choice("systems.llamacpp.quantization", self.quantization, QUANTIZATIONS)

    def file_type(self, dtype: str) -> str:
        """What the GGUF holds."""
        return dtype if self.quantization == "none" else self.quantization

    def spec(self, dtype: str) -> dict[str, object]:
        """What the program is told beside how it computes."""
        return {"mmap": self.mmap, "file_type": self.file_type(dtype)}
