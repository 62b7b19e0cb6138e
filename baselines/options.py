"""The options of each system, checked when they are made, and what a program is told of them.

One dataclass per system, in the words of its page in `conf/systems/`. `spec` is what goes into the
spec's `options` (the rest is the harness's: shares are used up by the split, say). What `tpi node`
serves under three names has its options in `node`.
"""

from dataclasses import asdict, dataclass

from baselines.validators import check_choice, check_count, check_flag, check_shares, check_size
from tpi.comm.allreduces.registry import find_allreduce
from tpi.program.spec import DTYPES, WIRE_DTYPES

QUANTIZATIONS = ("none", "q8_0", "q4_0")


@dataclass
class TpiOptions:
    """TPI-LLM: tensor parallelism with the memory scheduler."""

    window: int | str = 2
    memory_budget: int | None = None
    allreduce: str = "star"
    wire_dtype: str = "float32"
    shares: list[float] | None = None
    prefill_chunk: int = 512

    def __post_init__(self) -> None:
        if self.window != "all":
            check_count("window", self.window, or_="all")
        if self.memory_budget is not None:
            self.memory_budget = check_size("memory_budget", self.memory_budget)
        find_allreduce(self.allreduce)
        check_choice("wire_dtype", self.wire_dtype, WIRE_DTYPES)
        self.shares = None if self.shares is None else check_shares("shares", self.shares)
        check_count("prefill_chunk", self.prefill_chunk)

    @property
    def node(self) -> "TpiOptions":
        """The options of `tpi node`: these."""
        return self

    def spec(self, dtype: str) -> dict[str, object]:  # noqa: ARG002 - every system is asked alike
        """What the program is told."""
        return {k: v for k, v in asdict(self).items() if k != "shares"}


@dataclass
class ResidentOptions:
    """TPI-LLM without the memory scheduler: all weights of a rank stay in memory."""

    allreduce: str = "star"
    wire_dtype: str = "float32"
    shares: list[float] | None = None
    prefill_chunk: int = 512

    def __post_init__(self) -> None:
        self.shares = self.node.shares  # made, and so checked, there

    @property
    def node(self) -> TpiOptions:
        """The options of `tpi node`."""
        return TpiOptions("all", None, **asdict(self))

    def spec(self, dtype: str) -> dict[str, object]:
        """What the program is told."""
        return self.node.spec(dtype)


@dataclass
class WindowOptions:
    """TPI-LLM's memory scheduler on one device: the paper's "Transformers + MS"."""

    window: int | str = 2
    memory_budget: int | None = None
    prefill_chunk: int = 512

    def __post_init__(self) -> None:
        self.memory_budget = self.node.memory_budget  # made, and so checked, there

    @property
    def node(self) -> TpiOptions:
        """The options of `tpi node`."""
        return TpiOptions(**asdict(self))

    def spec(self, dtype: str) -> dict[str, object]:
        """What the program is told."""
        return self.node.spec(dtype)


@dataclass
class GalaxyOptions:
    """Tensor and sequence parallelism, ring collectives that overlap with products in prefill."""

    shares: list[float] | None = None
    prefill_chunk: int = 512
    overlap: bool = True

    def __post_init__(self) -> None:
        self.shares = None if self.shares is None else check_shares("shares", self.shares)
        check_count("systems.galaxy.prefill_chunk", self.prefill_chunk)
        check_flag("systems.galaxy.overlap", self.overlap)

    def spec(self, dtype: str) -> dict[str, object]:  # noqa: ARG002
        """What the program is told."""
        return {"prefill_chunk": self.prefill_chunk, "overlap": self.overlap}


@dataclass
class PipelineOptions:
    """Layer ranges on devices one after another; `shares` are their memories' proportions."""

    shares: list[float] | None = None
    prefill_chunk: int = 512

    def __post_init__(self) -> None:
        self.shares = None if self.shares is None else check_shares("shares", self.shares)
        check_count("systems.pipeline.prefill_chunk", self.prefill_chunk)

    def spec(self, dtype: str) -> dict[str, object]:  # noqa: ARG002
        """What the program is told."""
        return asdict(self)


@dataclass
class TransformersOptions:
    """Transformers on one device; dtype and threads are the run's unless given for it alone."""

    dtype: str | None = None
    threads: int | None = None
    low_cpu_mem_usage: bool = True
    mmap: bool = True

    def __post_init__(self) -> None:
        if self.dtype is not None:
            check_choice("systems.transformers.dtype", self.dtype, DTYPES)
        if self.threads is not None:
            check_count("systems.transformers.threads", self.threads, high=1024)
        check_flag("systems.transformers.low_cpu_mem_usage", self.low_cpu_mem_usage)
        check_flag("systems.transformers.mmap", self.mmap)

    def spec(self, dtype: str) -> dict[str, object]:  # noqa: ARG002
        """What the program is told; dtype and threads have places of their own in a spec."""
        return {"low_cpu_mem_usage": self.low_cpu_mem_usage, "mmap": self.mmap}


@dataclass
class AccelerateOptions:
    """Accelerate's disk offload; `max_memory` null offloads everything."""

    max_memory: int | None = None

    def __post_init__(self) -> None:
        if self.max_memory is not None:
            self.max_memory = check_size("systems.accelerate.max_memory", self.max_memory)

    def spec(self, dtype: str) -> dict[str, object]:  # noqa: ARG002
        """What the program is told."""
        return asdict(self)


@dataclass
class Accelerate2024Options:
    """Accelerate as the paper met it: everything is loaded, then offloaded. No options."""

    def spec(self, dtype: str) -> dict[str, object]:  # noqa: ARG002
        """What the program is told."""
        return {}


@dataclass
class TransformersTpOptions:
    """Transformers' own tensor parallelism. No options."""

    def spec(self, dtype: str) -> dict[str, object]:  # noqa: ARG002
        """What the program is told."""
        return {}


@dataclass
class LlamacppOptions:
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
        """What the program is told."""
        return {"mmap": self.mmap, "file_type": self.file_type(dtype)}


NodeOptions = TpiOptions | ResidentOptions | WindowOptions
SystemOptions = (
    NodeOptions
    | GalaxyOptions
    | PipelineOptions
    | TransformersOptions
    | AccelerateOptions
    | Accelerate2024Options
    | TransformersTpOptions
    | LlamacppOptions
)
