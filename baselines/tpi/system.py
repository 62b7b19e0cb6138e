"""The systems of `tpi node`: TPI-LLM with and without its memory scheduler, also on one device."""

from typing import ClassVar, Generic

from baselines.base import Opts, System
from baselines.cost_inputs import MATVEC_BPS, CostInputs, Prediction, overlapped_s
from baselines.options import DEFAULT, Chunked, Shared
from baselines.validators import check_choice, check_count, check_size
from tpi.comm.allreduces.registry import find_allreduce
from tpi.options import ALL_BLOCKS, WIRE_DTYPES, window_word
from tpi.planner.memory import block_bytes, choose_window
from tpi.weights.shard import make_shard_plan

_Window = int | str
_WINDOW: _Window = window_word(DEFAULT.window)


class ResidentOptions(Shared, frozen=True, kw_only=True):
    """TPI-LLM without the memory scheduler: all weights of a rank stay in memory."""

    fixed: ClassVar = {"window": None}
    shown: ClassVar[tuple[str, ...]] = ("allreduce", "wire_dtype")
    allreduce: str = DEFAULT.allreduce
    wire_dtype: str = DEFAULT.wire_dtype

    def __post_init__(self) -> None:
        super().__post_init__()
        find_allreduce(self.allreduce)
        check_choice("wire_dtype", self.wire_dtype, WIRE_DTYPES)


class WindowOptions(Chunked, frozen=True, kw_only=True):
    """TPI-LLM's memory scheduler on one device: the paper's "Transformers + MS"."""

    shown: ClassVar = ("window", "memory_budget")
    window: _Window = _WINDOW
    memory_budget: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set("memory_budget", _checked_window(self.window, self.memory_budget))


class TpiOptions(ResidentOptions, frozen=True, kw_only=True):
    """TPI-LLM: tensor parallelism with the memory scheduler."""

    fixed: ClassVar = {}
    shown: ClassVar = ("window", "memory_budget", "allreduce", "wire_dtype")
    about: ClassVar = {
        "prefill_chunk": "prompt tokens in one pass; so for all that use tpi's parts"
    }
    window: _Window = _WINDOW
    memory_budget: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set("memory_budget", _checked_window(self.window, self.memory_budget))


def _checked_window(window: _Window, memory_budget: object) -> int | None:
    """Check window and budget; returns the budget in bytes."""
    if window != ALL_BLOCKS:
        check_count("window", window, or_=ALL_BLOCKS)
    return None if memory_budget is None else check_size("memory_budget", memory_budget)


class NodeSystem(System[Opts], Generic[Opts]):
    """`tpi node` on every device, or a program made of its parts.

    Its memory comes from `tpi.planner.memory`, which a test holds to within 10 % of
    measurements. Its seconds are estimates, meant to be too many: they decide what is cut to fit
    `max_minutes`, nothing else.
    """

    def predict(self, inputs: CostInputs, options: Opts) -> Prediction:
        """Predict what one start and one request take."""
        model, devices = inputs.model, self.world_size(len(inputs.devices))
        compute = options.compute(inputs.dtype, inputs.max_tokens)
        plan = make_shard_plan(model, devices, options.split)
        blocks = [block_bytes(model, plan, rank, inputs.storage) for rank in range(devices)]
        choices = [choose_window(model, plan, r, blocks[r], compute) for r in range(devices)]
        streamed = sum(choice.streamed_bytes_per_pass for choice in choices)
        stored = sum(num_bytes for rank in blocks for _, num_bytes in rank)
        cores = inputs.cores(devices)
        stream_s = streamed / inputs.read_bps(devices)
        allreduces = 2 * model.num_layers
        chunk = min(compute.prefill_chunk, inputs.prompt_tokens) * inputs.hidden_bytes
        passes = -(-inputs.prompt_tokens // compute.prefill_chunk)
        return Prediction(
            peak_bytes=tuple(choice.peak_bytes for choice in choices),
            read_bytes_per_step=streamed,
            start_s=inputs.start_s(devices) + (stored - streamed) / inputs.read_bps(devices),
            prefill_s=overlapped_s(passes * stream_s, inputs.prefill_s(cores))
            + passes * allreduces * inputs.exchange_s(devices, chunk),
            step_s=overlapped_s(stream_s, stored / (MATVEC_BPS * cores))
            + allreduces * inputs.exchange_s(devices, inputs.hidden_bytes),
        )


_NODE = ("-m", "tpi.cli", "node")
_SIMULATOR = "baselines.tpi.schedule:simulate"
SYSTEMS = (
    NodeSystem("tpi", TpiOptions, _NODE, _SIMULATOR, distributed=True, order=10),
    NodeSystem("tpi-resident", ResidentOptions, _NODE, _SIMULATOR, distributed=True, order=11),
    NodeSystem("transformers-window", WindowOptions, _NODE, _SIMULATOR, order=21),
)
