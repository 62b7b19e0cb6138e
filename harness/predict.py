"""What one start of one system will need: memory per device, bytes to read, seconds. Pure.

Memory of `tpi` comes from `tpi.memory`, which a test holds to within 10 % of what is measured. The
seconds are estimates, made from the bytes of a step, the disk's measured rate and compute rates
below that are meant to be too low: they decide what is cut to fit `max_minutes`, nothing else.
"""

from dataclasses import dataclass

from harness.config import TpiOptions
from harness.host import Host
from tpi.config import ModelConfig
from tpi.memory import block_bytes, choose_window
from tpi.weights.hf_folder import required_hf_bytes
from tpi.weights.shard import ShardPlan
from tpi.weights.split import required_bytes

# Low ends of what was seen on two-core virtual machines (2023 EPYC and Xeon), per thread.
_START_CPU_S = 3.0  # importing torch, per process
_MATVEC_BPS = 3e9  # stored weights through a matrix-vector product
_PREFILL_FLOPS = 15e9  # floating-point operations of a prefill
_HASH_BPS = 0.8e9  # SHA-256, once for new shards
_EXCHANGE_S = 0.5e-3  # one allreduce on loopback, per device
_DISK_SHARE = 0.9  # of the rate that was probed, since others use the disk too
_NOT_OVERLAPPED = 0.25  # of the shorter of reading and computing
# Transformers before any weight: measured VmHWM of importing torch and transformers.
_TRANSFORMERS_BASE_BYTES = 450 << 20
_ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True, slots=True)
class Cost:
    """One start of a system, one request in it.

    Attributes:
        peak_bytes: Predicted peak memory of each device.
        read_bytes_per_step: What all devices together read from disk in one forward pass.
        start_s: From start until requests can come.
        prefill_s: From `go` to the first token.
        step_s: Each further token.
    """

    peak_bytes: tuple[int, ...]
    read_bytes_per_step: int
    start_s: float
    prefill_s: float
    step_s: float

    @property
    def need_bytes(self) -> int:
        """Memory of all devices together: they share one machine."""
        return sum(self.peak_bytes)

    def request_s(self, new_tokens: int) -> float:
        """Seconds that one request takes."""
        return self.prefill_s + (new_tokens - 1) * self.step_s


def num_parameters(model: ModelConfig) -> int:
    """Parameters of the whole model, a tied head counted once."""
    return required_hf_bytes(model, "float32") // 4


def most_distinct_layers(model: ModelConfig, plan: ShardPlan, dtype: str, max_bytes: int) -> int:
    """How many layers can be stored in `max_bytes`; 0 if not even one."""
    one = required_bytes(model, plan, dtype, 1)
    if model.num_layers == 1:
        return int(one <= max_bytes)
    per_layer = (required_bytes(model, plan, dtype) - one) // (model.num_layers - 1)
    return max(0, min(model.num_layers, 1 + (max_bytes - one) // per_layer))


def tpi_cost(
    model: ModelConfig,
    plan: ShardPlan,
    options: TpiOptions,
    *,
    storage: str,
    dtype: str,
    prompt_tokens: int,
    max_tokens: int,
    threads: int,
    host: Host,
) -> Cost:
    """Predict TPI-LLM.

    Raises:
        ResourceError: The memory budget cannot work; the message has the least that would.
    """
    blocks = [block_bytes(model, plan, rank, storage) for rank in range(plan.world_size)]
    choices = [
        choose_window(
            model,
            plan,
            rank,
            blocks=blocks[rank],
            dtype=dtype,
            max_batch=1,
            max_tokens=max_tokens,
            step_tokens=min(options.prefill_chunk, max_tokens),
            window=None if options.window == "all" else int(options.window),
            memory_budget=options.memory_budget,
            allreduce=options.allreduce,
        )
        for rank in range(plan.world_size)
    ]
    streamed = sum(choice.streamed_bytes_per_pass for choice in choices)
    stored = sum(num_bytes for rank in blocks for _, num_bytes in rank)
    cores = min(host.cores, plan.world_size * threads)
    stream_s = streamed / (_DISK_SHARE * host.read_bps)
    exchange_s = 2 * model.num_layers * plan.world_size * _EXCHANGE_S * (plan.world_size > 1)
    passes = -(-prompt_tokens // options.prefill_chunk)
    start_s = _START_CPU_S * plan.world_size / min(host.cores, plan.world_size)
    return Cost(
        peak_bytes=tuple(choice.peak_bytes for choice in choices),
        read_bytes_per_step=streamed,
        start_s=start_s + (stored - streamed) / (_DISK_SHARE * host.read_bps),
        prefill_s=_overlapped(passes * stream_s, _prefill_s(model, prompt_tokens, cores))
        + passes * exchange_s,
        step_s=_overlapped(stream_s, stored / (_MATVEC_BPS * cores)) + exchange_s,
    )


def transformers_cost(
    model: ModelConfig, *, storage: str, dtype: str, prompt_tokens: int, threads: int, host: Host
) -> Cost:
    """Predict Transformers on one device, which holds all weights in the compute dtype."""
    weights = num_parameters(model) * _ITEM_BYTES[dtype]
    cores = min(host.cores, threads)
    load_s = required_hf_bytes(model, storage) / (_DISK_SHARE * host.read_bps) + weights / 1e9
    return Cost(
        peak_bytes=(weights + _TRANSFORMERS_BASE_BYTES,),
        read_bytes_per_step=0,
        start_s=2 * _START_CPU_S + load_s,
        prefill_s=_prefill_s(model, prompt_tokens, cores),
        step_s=weights / (_MATVEC_BPS * cores),
    )


def write_seconds(num_bytes: int, host: Host) -> float:
    """Seconds to make weights, and to hash them once."""
    return num_bytes / min(host.write_bps, 0.5e9) + num_bytes / min(host.read_bps, _HASH_BPS)


def _overlapped(one_s: float, other_s: float) -> float:
    return max(one_s, other_s) + _NOT_OVERLAPPED * min(one_s, other_s)


def _prefill_s(model: ModelConfig, prompt_tokens: int, cores: int) -> float:
    operations = 2 * num_parameters(model)
    return operations * prompt_tokens / (_PREFILL_FLOPS * cores) + operations / (
        _MATVEC_BPS * cores
    )
