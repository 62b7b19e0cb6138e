"""What one start of one system will need: memory per device, bytes to read, seconds. Pure.

Memory of `tpi` and what is built of its parts comes from `tpi.planner.memory`, which a test holds
to within 10 % of what is measured; `baselines/accelerate/cost.py` has the others. The seconds are
estimates, made from the bytes of a step, the disk's measured rate and compute rates that are meant
to be too low: they decide what is cut to fit `max_minutes`, nothing else. Read `predict`.
"""

from dataclasses import replace

from baselines.accelerate.cost import (
    accelerate_2024_cost,
    accelerate_cost,
    llamacpp_cost,
    transformers_cost,
    transformers_tp_cost,
)
from baselines.cost_inputs import MATVEC_BPS, CostInputs, Prediction
from baselines.options import (
    Accelerate2024Options,
    AccelerateOptions,
    GalaxyOptions,
    LlamacppOptions,
    PipelineOptions,
    SystemOptions,
    TpiOptions,
    TransformersOptions,
    TransformersTpOptions,
)
from baselines.pipeline.stages import stage_peaks
from baselines.registry import REFERENCE, SYSTEMS
from testbed.host.rates import Host
from tpi.model_config import ModelConfig
from tpi.planner.memory import block_bytes, choose_window
from tpi.weights.shard import ShardPlan, make_shard_plan
from tpi.weights.split import required_bytes

_HASH_BPS = 0.8e9  # SHA-256, once for new shards
_NOT_OVERLAPPED = 0.25  # of the shorter of reading and computing


def predict(name: str, options: SystemOptions, setting: CostInputs) -> Prediction:
    """Predict one system.

    Raises:
        ResourceError: A memory budget that cannot work; the message has the least that would.
    """
    devices = setting.devices if SYSTEMS[name].distributed else 1
    match options:
        case TransformersOptions():
            return transformers_cost(_own(setting, options), full=not options.low_cpu_mem_usage)
        case AccelerateOptions():
            return accelerate_cost(setting, options.max_memory)
        case Accelerate2024Options():
            return accelerate_2024_cost(setting)
        case TransformersTpOptions():
            return transformers_tp_cost(setting)
        case LlamacppOptions():
            return llamacpp_cost(setting, options)
        case PipelineOptions():
            return _pipeline_cost(setting, options)
        case GalaxyOptions():
            ring = TpiOptions("all", None, "ring", shares=options.shares,
                              prefill_chunk=options.prefill_chunk)  # fmt: skip
            return _node_cost(setting, ring, devices)
        case _:
            return _node_cost(setting, options.node, devices)


def reference_cost(setting: CostInputs, model: ModelConfig | None = None) -> Prediction:
    """Predict the reference, Transformers in float32; on another model, if one is given."""
    setting = replace(setting, model=model or setting.model, dtype="float32")
    return predict(REFERENCE, TransformersOptions(), setting)


def most_distinct_layers(model: ModelConfig, plan: ShardPlan, dtype: str, max_bytes: int) -> int:
    """How many layers can be stored in `max_bytes`; 0 if not even one."""
    one = required_bytes(model, plan, dtype, 1)
    if model.num_layers == 1:
        return int(one <= max_bytes)
    per_layer = (required_bytes(model, plan, dtype) - one) // (model.num_layers - 1)
    return max(0, min(model.num_layers, 1 + (max_bytes - one) // per_layer))


def write_seconds(num_bytes: int, host: Host) -> float:
    """Seconds to make weights, and to hash them once."""
    return num_bytes / min(host.write_bps, 0.5e9) + num_bytes / min(host.read_bps, _HASH_BPS)


def _own(setting: CostInputs, options: TransformersOptions) -> CostInputs:
    """The setting with the dtype and threads that were given for this system alone."""
    return replace(
        setting,
        dtype=options.dtype or setting.dtype,
        threads=options.threads or setting.threads,
    )


def _node_cost(setting: CostInputs, options: TpiOptions, devices: int) -> Prediction:
    """Predict `tpi node` on every device, and what is made of its parts."""
    model, storage = setting.model, setting.storage
    plan = make_shard_plan(model, devices, options.shares)
    blocks = [block_bytes(model, plan, rank, storage) for rank in range(devices)]
    choices = [
        choose_window(
            model,
            plan,
            rank,
            blocks=blocks[rank],
            dtype=setting.dtype,
            max_batch=1,
            max_tokens=setting.max_tokens,
            step_tokens=min(options.prefill_chunk, setting.max_tokens),
            window=None if options.window == "all" else int(options.window),
            memory_budget=options.memory_budget,
            allreduce=options.allreduce,
        )
        for rank in range(devices)
    ]
    streamed = sum(choice.streamed_bytes_per_pass for choice in choices)
    stored = sum(num_bytes for rank in blocks for _, num_bytes in rank)
    cores = setting.cores(devices)
    stream_s = streamed / setting.read_bps(devices)
    allreduces = 2 * model.num_layers
    exchange_s = allreduces * setting.exchange_s(devices, setting.hidden_bytes)
    chunk = min(options.prefill_chunk, setting.prompt_tokens) * setting.hidden_bytes
    passes = -(-setting.prompt_tokens // options.prefill_chunk)
    return Prediction(
        peak_bytes=tuple(choice.peak_bytes for choice in choices),
        read_bytes_per_step=streamed,
        start_s=setting.start_s(devices) + (stored - streamed) / setting.read_bps(devices),
        prefill_s=_overlapped(passes * stream_s, setting.prefill_s(cores))
        + passes * allreduces * setting.exchange_s(devices, chunk),
        step_s=_overlapped(stream_s, stored / (MATVEC_BPS * cores)) + exchange_s,
    )


def _pipeline_cost(setting: CostInputs, options: PipelineOptions) -> Prediction:
    """Predict the pipeline: one device computes at a time, as long as all together would."""
    peaks = stage_peaks(
        setting.model,
        setting.devices,
        options.shares,
        setting.storage,
        dtype=setting.dtype,
        max_tokens=setting.max_tokens,
        step_tokens=min(options.prefill_chunk, setting.max_tokens),
    )
    stored = setting.stored_bytes
    hops = setting.devices - 1
    pass_s = hops * setting.exchange_s(min(2, setting.devices), setting.hidden_bytes)
    return Prediction(
        peak_bytes=tuple(peaks),
        read_bytes_per_step=0,
        start_s=setting.start_s(setting.devices) + stored / setting.read_bps(),
        prefill_s=setting.prefill_s(setting.cores()) + pass_s,
        step_s=stored / (MATVEC_BPS * setting.cores()) + pass_s,
    )


def _overlapped(one_s: float, other_s: float) -> float:
    return max(one_s, other_s) + _NOT_OVERLAPPED * min(one_s, other_s)
