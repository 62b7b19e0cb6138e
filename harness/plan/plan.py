"""From a configuration to what will be run: pure, made before anything starts.

`make_plan` decides how many layers are stored, which systems fit in memory, how tokens will be
checked, and what is cut so that all of it fits `max_minutes` (`fit_time.py`);
`harness/plan/describe.py` puts it in words. A plan follows from the configuration and from what the
host has at that moment: with less memory free, a system may be refused that was measured before
(`Experiment` then keeps the measurement). What earlier runs left behind changes what is still to
do, never what is cut. Read `make_plan` first.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from baselines.cost import most_distinct_layers, predict, reference_cost
from baselines.cost_inputs import CostInputs, Prediction, cost_inputs_of
from baselines.options import (
    LlamacppOptions,
    PipelineOptions,
    SystemOptions,
    TransformersOptions,
)
from baselines.registry import REFERENCE
from baselines.weight_formats import format_num_bytes, weight_format_of
from harness.config.config import Config, ModelChoice
from harness.config.profiles import LinkFault
from harness.plan.dilation import Dilation, HostRates, choose_dilation, limits_of
from harness.plan.fit_time import fit_time
from harness.plan.types import Plan, SystemPlan, reduced_model
from testbed.host.rates import Host
from testbed.limits.limits import LEAST_CPUS, DeviceLimits
from testbed.links.link import LinkSpec
from testbed.links.linkfault import check_fault
from tpi.errors import ConfigError, ResourceError
from tpi.model_config import ModelConfig
from tpi.units import format_bytes
from tpi.weights.shard import make_shard_plan
from tpi.weights.split import required_bytes

MEMORY_SHARE = 0.9  # of what is free; the rest is for everybody else
WARMUP_TOKENS = 2  # a prefill and a step: every path once
_CHECK_TOKENS = 8


def make_plan(config: Config, model: ModelConfig, prompt_tokens: int, host: Host) -> Plan:
    """Plan all runs of a configuration.

    Raises:
        ConfigError: It cannot be done as asked; the message has the number and what would help.
    """
    check_fits_model(config, model, prompt_tokens)
    synthetic = is_synthetic(config)
    storage = model.dtype if config.weights.dtype == "auto" else config.weights.dtype
    limits, links, dilation = _enforced(config, host)
    setting = cost_inputs_of(config, model, storage, prompt_tokens, host, limits, links)
    limit = int(MEMORY_SHARE * host.available_memory)
    systems = tuple(
        _plan_system(config, setting, name, options, limit)
        for name, options in config.systems.items()
    )
    runs = [system.name for system in systems if system.refusal is None]
    check, reason = _plan_check(setting, limit, runs)
    layers = _distinct_layers(config, model, storage) if synthetic else model.num_layers
    plan = Plan(
        config=config,
        model=model,
        storage=storage,
        synthetic=synthetic,
        distinct_layers=layers,
        prompt_tokens=prompt_tokens,
        warmup_tokens=min(WARMUP_TOKENS, config.workload.new_tokens),
        systems=systems,
        memory_limit=limit,
        check=check if runs else "none",
        check_reason=reason,
        limits=limits,
        links=links,
        dilation=dilation,
        host_read_bps=host.read_bps,
    )
    return fit_time(plan, host)


def _enforced(
    config: Config, host: Host
) -> tuple[tuple[DeviceLimits, ...], tuple[LinkSpec, ...], Dilation]:
    """What holds on each device of this host, on its link, and how much slower that makes it."""
    if config.testbed.backend == "local":
        limits = DeviceLimits(threads=config.device.threads or 1)
        return (limits,) * config.devices, (LinkSpec(),) * config.devices, Dilation(1.0)
    testbed, profiles = config.testbed, config.profiles
    rates = HostRates(host.cores, host.core_gbps, host.read_bps)
    dilation = choose_dilation(
        testbed.dilation,
        profiles,
        rates,
        fit=testbed.fit,
        oversubscribe=testbed.oversubscribe,
    )
    factor = dilation.factor
    enforced = tuple(limits_of(profile, factor, rates, testbed.fit) for profile in profiles)
    for rank, of_one in enumerate(enforced):
        if of_one.cpus is not None and of_one.cpus < LEAST_CPUS:
            raise ConfigError(
                f"device {rank}: at dilation {factor:g} it gets {of_one.cpus:.2g} cores of this"
                f" host, the kernel enforces {LEAST_CPUS:g} at least; say more device.cores or"
                " device.mem_gbps, or a smaller testbed.dilation"
            )
    for fault in config.link.faults:
        _check_happens(fault, config.max_minutes, factor)
    return (
        enforced,
        tuple(link.dilated(factor) for link in config.links),
        dilation,
    )


def _check_happens(fault: LinkFault, max_minutes: float, factor: float) -> None:
    """Refuse a fault that the run cannot make."""
    if fault.at_s * factor > max_minutes * 60:
        raise ConfigError(
            f"link.faults: at_s: got {fault.at_s:g}, {fault.at_s * factor:g} s at dilation"
            f" {factor:g}, which is later than max_minutes={max_minutes:g}"
        )
    if fault.kind == "delay":
        check_fault("delay", fault.value / 1e3 * factor)


def is_synthetic(config: Config) -> bool:
    """Whether weights are made up; the alternative is a folder's own."""
    source = config.weights.source
    if source == "folder" and config.model.path is None:
        raise ConfigError(
            f"weights=folder: model={config.model.name} has no folder; say model=folder"
            " model.path=DIR, or weights=synthetic"
        )
    synthetic = source == "synthetic" or config.model.path is None
    if not synthetic and config.weights.dtype != "auto":
        raise ConfigError(
            "weights.dtype: a folder's weights keep their own dtype; leave it out,"
            " or say weights=synthetic"
        )
    if not synthetic and config.weights.distinct_layers != "auto":
        raise ConfigError("weights.distinct_layers: a folder has the layers it has; leave it out")
    return synthetic


def check_fits_model(config: Config, model: ModelConfig, prompt_tokens: int) -> None:
    """Refuse more positions than the model has."""
    total = prompt_tokens + config.workload.new_tokens
    if total > model.max_positions:
        raise ConfigError(
            f"workload: a prompt of {prompt_tokens} and {config.workload.new_tokens} new tokens are"
            f" {total} positions, the model has {model.max_positions}; make either shorter"
        )


def _plan_system(
    config: Config, setting: CostInputs, name: str, options: SystemOptions, limit: int
) -> SystemPlan:
    try:
        cost = predict(name, options, setting)
    except ResourceError as exc:
        raise ConfigError(f"memory_budget: {exc}") from exc
    return SystemPlan(
        name=name,
        options=options,
        world_size=len(cost.peak_bytes),
        form=weight_format_of(name, options, setting.model, config.devices, config.dtype),
        cost=cost,
        check="exact" if is_exact(options, config.dtype) else "bounded",
        refusal=_refusal(config, setting, name, options, cost, limit),
    )


def _refusal(
    config: Config,
    setting: CostInputs,
    name: str,
    options: SystemOptions,
    cost: Prediction,
    limit: int,
) -> str | None:
    """Why a system cannot run on this machine, computed; None if it can."""
    devices = len(cost.peak_bytes)
    where = "one device" if devices == 1 else f"{devices} devices"
    # A device that runs into its own limit is a result; what the host cannot hold is not.
    memories = [lim.memory for lim in setting.limits] or [None] * devices
    need = sum(
        min(peak, memory or peak) for peak, memory in zip(cost.peak_bytes, memories, strict=False)
    )
    if need > limit:
        resident = not cost.read_bytes_per_step or cost.scratch_bytes
        dtype = getattr(options, "dtype", None) or config.dtype
        what = f"all weights in {dtype} on {where}" if resident else where
        return (
            f"needs {format_bytes(need)} of memory ({what}), the limit is"
            f" {format_bytes(limit)} ({MEMORY_SHARE:.0%} of what is free)"
        )
    form = weight_format_of(name, options, setting.model, config.devices, config.dtype)
    most = config.weights.max_bytes
    # Block files of repeated layers are links; these forms hold every layer in full.
    if form.shard_plan is None and is_synthetic(config):
        num_bytes = format_num_bytes(form, setting.model, setting.storage, setting.model.num_layers)
        if num_bytes > most:
            return (
                f"needs {format_bytes(num_bytes)} of disk ({form.words}),"
                f" weights.max_bytes is {format_bytes(most)}"
            )
    return None


def is_exact(options: SystemOptions, dtype: str) -> bool:
    """Whether tokens must equal the reference's: nothing is rounded to 16 bit or less."""
    if isinstance(options, LlamacppOptions) and options.quantization != "none":
        return False
    if isinstance(options, TransformersOptions) and options.dtype is not None:
        return options.dtype == "float32"
    return dtype == "float32" and getattr(options, "wire_dtype", "float32") == "float32"


def _plan_check(setting: CostInputs, limit: int, runs: Sequence[str]) -> tuple[str, str]:
    """What tokens of the systems in `runs` are checked against, and why it is no better."""
    full = reference_cost(setting).need_bytes
    if full <= limit:
        return "reference", ""
    why = f"the reference needs {format_bytes(full)}, the limit is {format_bytes(limit)}"
    if set(runs) <= {REFERENCE}:
        return "none", f"{why}; two layers of it would check others, and none runs"
    small = reference_cost(setting, reduced_model(setting.model)).need_bytes
    if small <= limit:
        return "two_layer", why
    return "none", f"{why}; even two layers of it need {format_bytes(small)}"


def reduced_plan(plan: Plan) -> Plan:
    """The check that stands in for a reference, as a plan: each system once, synthetic weights."""
    model = reduced_model(plan.model)
    new_tokens = max(plan.new_tokens, min(_CHECK_TOKENS, model.max_positions - plan.prompt_tokens))
    name = Path(plan.config.model.path or plan.config.model.name).resolve().name
    config = replace(
        plan.config,
        model=ModelChoice(f"{name}-two-layers"),
        workload=replace(plan.config.workload, new_tokens=new_tokens),
        repeats=1,
        trace=False,  # of a check nobody looks at the spans
    )
    return replace(
        plan,
        config=config,
        model=model,
        synthetic=True,
        distinct_layers=model.num_layers,
        warmup_tokens=1,
        systems=tuple(_on_two_layers(s, config, model) for s in plan.checked_first),
        check="reference",
        check_reason="",
        cuts=(),
    )


def _on_two_layers(system: SystemPlan, config: Config, model: ModelConfig) -> SystemPlan:
    form = weight_format_of(system.name, system.options, model, config.devices, config.dtype)
    if isinstance(system.options, PipelineOptions):  # no device of it can be without a layer
        world_size = min(system.world_size, model.num_layers)
        options = replace(system.options, shares=None)
        return replace(system, world_size=world_size, options=options, form=form)
    return replace(system, form=form)


def _distinct_layers(config: Config, model: ModelConfig, storage: str) -> int:
    wanted = config.weights.distinct_layers
    shard_plan = make_shard_plan(model, config.devices, _first_shares(config))
    most = most_distinct_layers(model, shard_plan, storage, config.weights.max_bytes)
    least = format_bytes(required_bytes(model, shard_plan, storage, 1))
    if most < 1:
        raise ConfigError(
            f"weights.max_bytes: got {format_bytes(config.weights.max_bytes)}, one distinct layer"
            f" of this model takes {least}"
        )
    if wanted == "auto":
        return most
    if int(wanted) > model.num_layers:
        raise ConfigError(
            f"weights.distinct_layers: got {wanted}, the model has {model.num_layers} layers"
        )
    if int(wanted) > most:
        raise ConfigError(
            f"weights.distinct_layers: got {wanted}, weights.max_bytes="
            f"{format_bytes(config.weights.max_bytes)} holds {most}; raise it"
        )
    return int(wanted)


def _first_shares(config: Config) -> list[float] | None:
    shares = (getattr(options, "shares", None) for options in config.systems.values())
    return next((s for s in shares if s), None)
