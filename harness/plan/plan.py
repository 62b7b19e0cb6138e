"""From a configuration to what will be run or simulated: pure, made before anything starts.

`make_plan` decides how many layers are stored, which systems fit in memory, how tokens will be
checked, and what is cut to fit `max_minutes` (`fit_time.py`). `describe.py` puts a plan in words.
It depends on the configuration and on what the host has free at that moment: with less memory, a
system may be refused that was measured before (`Experiment` then keeps the measurement). Earlier
runs change what is still to do, never what is cut.

A simulated plan is for the host that was calibrated, with room for everything: nothing is refused
or cut but for a memory budget that cannot work anywhere. So it is the same on every machine.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from baselines.cost_inputs import CostInputs, Prediction
from baselines.registry import REFERENCE, find_system, reference_cost
from baselines.weight_formats import WeightFormat, format_num_bytes, most_distinct_layers
from harness.config.config import Config, ModelChoice
from harness.config.profiles import REFERENCE_CALIBRATION
from harness.plan.dilation import Dilation, choose_dilation, limits_of
from harness.plan.fit_time import cost_inputs_of, fit_time
from harness.plan.types import Plan, SystemPlan, reduced_model
from testbed.host.rates import Host
from testbed.limits.limits import LEAST_CPUS, DeviceLimits, DevicePlan
from testbed.links.linkfault import check_fault
from testbed.sim.calibration import Calibration, load_calibration
from tpi.errors import ConfigError, ResourceError, map_errors
from tpi.model_config import ModelConfig
from tpi.units import format_bytes
from tpi.weights.shard import make_shard_plan
from tpi.weights.split import required_bytes

MEMORY_SHARE = 0.9  # of what is free; the rest is for other programs
WARMUP_TOKENS = 2  # a prefill and a step: every path once
_CHECK_TOKENS = 8
_SIMULATE_S = 1.0  # most simulations are quicker, and none is predicted


def calibration_of(config: Config) -> Calibration | None:
    """The calibration of a simulated testbed; None for one whose devices are made.

    Raises:
        ConfigError: It cannot be read, or is none.
    """
    name = config.testbed.calibration
    if config.testbed.backend != "sim":
        return None
    if name != REFERENCE_CALIBRATION and not Path(name).exists():
        raise ConfigError(f"testbed.calibration: {name}: no such file; make calibrate writes one")
    with map_errors({ConfigError: ConfigError}, "testbed.calibration"):
        return load_calibration(None if name == REFERENCE_CALIBRATION else Path(name))


def calibrated_host(calibration: Calibration) -> Host:
    """The host that simulated devices are planned on."""
    disk_bps = calibration.disk_read_bps
    room, core_gbps = sys.maxsize, calibration.core_read_bps / 1e9
    return Host(room, room, read_bps=disk_bps, write_bps=disk_bps, cores=room, core_gbps=core_gbps)


def make_plan(
    config: Config,
    model: ModelConfig,
    prompt_ids: Sequence[int],
    host: Host,
    calibration: Calibration | None = None,
    *,
    unavailable: Mapping[str, str] | None = None,
    is_all: bool = False,
) -> Plan:
    """Plan all runs of a configuration.

    `host` is this one, or that of the calibration that simulated costs come from. `unavailable` has
    systems that were left out already, and why. If systems came by `all` (`is_all`), one whose
    memory budget cannot work is left out.

    Raises:
        ConfigError: It cannot be done as asked; the message has the number and what would help.
    """
    _check_fits_model(config, model, len(prompt_ids))
    synthetic = _is_synthetic(config)
    storage = model.dtype if config.weights.dtype == "auto" else config.weights.dtype
    devices, dilation = _devices(config, host)
    setting = cost_inputs_of(config, model, storage, len(prompt_ids), host, devices)
    costs, refused = _predict_all(config, setting, is_all=is_all)
    systems = tuple(_plan_system(config, setting, devices, *each) for each in costs.items())
    runs = [system.name for system in systems if system.refusal is None]
    is_simulated = calibration is not None
    check, reason = _plan_check(setting, runs)
    if is_simulated:
        check, reason = "none", "simulated: no token was computed"
        config = replace(config, repeats=1)  # every repeat would be the same
    layers = model.num_layers
    if synthetic and not is_simulated:
        layers = _distinct_layers(config, model, storage)
    plan = Plan(
        config=config,
        model=model,
        storage=storage,
        synthetic=synthetic,
        distinct_layers=layers,
        prompt_ids=tuple(prompt_ids),
        warmup_tokens=min(WARMUP_TOKENS, config.workload.new_tokens),
        devices=devices,
        systems=systems,
        unavailable={**(unavailable or {}), **refused},
        check=check if runs else "none",
        check_reason=reason,
        host=host,
        calibration=calibration,
        dilation=dilation,
    )
    return replace(plan, predicted_s=_SIMULATE_S) if is_simulated else fit_time(plan)


def _devices(config: Config, host: Host) -> tuple[tuple[DevicePlan, ...], Dilation]:
    """Every device as it will be in force, and the dilation that makes them fit this host."""
    testbed, profiles = config.testbed, config.profiles
    dilation = Dilation(1.0)
    if testbed.backend == "docker":
        dilation = choose_dilation(
            testbed.dilation, profiles, host, fit=testbed.fit, oversubscribe=testbed.oversubscribe
        )
    factor = dilation.factor
    limits = [limits_of(profile, factor, host, testbed.fit) for profile in profiles]
    if testbed.backend == "local":
        limits = [DeviceLimits(threads=config.device.threads or 1)] * config.devices
    elif testbed.backend == "sim":  # a device without a limit computes with one thread too
        limits = [replace(each, cpus=each.cpus or 1.0, threads=1) for each in limits]
    else:
        _check_can_be_emulated(config, limits, factor)
    links = [link.dilated(factor) for link in config.links]
    names = [profile.name for profile in profiles]
    return tuple(map(DevicePlan, names, limits, links)), dilation


def _check_can_be_emulated(config: Config, limits: Sequence[DeviceLimits], factor: float) -> None:
    """Refuse limits that the kernel cannot enforce, and faults that come too late."""
    for rank, of_one in enumerate(limits):
        if of_one.cpus is not None and of_one.cpus < LEAST_CPUS:
            raise ConfigError(
                f"device {rank}: at dilation {factor:g} it gets {of_one.cpus:.2g} cores of this"
                f" host, the kernel enforces {LEAST_CPUS:g} at least; say more device.cores or"
                " device.mem_gbps, or a smaller testbed.dilation"
            )
    for fault in config.link.faults:
        if fault.at_s * factor > config.max_minutes * 60:
            raise ConfigError(
                f"link.faults: at_s: got {fault.at_s:g}, {fault.at_s * factor:g} s at dilation"
                f" {factor:g}, which is later than max_minutes={config.max_minutes:g}"
            )
        if fault.kind == "delay":
            check_fault("delay", fault.value / 1e3 * factor)


def _is_synthetic(config: Config) -> bool:
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


def _check_fits_model(config: Config, model: ModelConfig, prompt_tokens: int) -> None:
    """Refuse more positions than the model has."""
    total = prompt_tokens + config.workload.new_tokens
    if total > model.max_positions:
        raise ConfigError(
            f"workload: a prompt of {prompt_tokens} and {config.workload.new_tokens} new tokens are"
            f" {total} positions, the model has {model.max_positions}; make either shorter"
        )


def _predict_all(
    config: Config, setting: CostInputs, *, is_all: bool
) -> tuple[dict[str, Prediction], dict[str, str]]:
    """The cost of every system, and why the memory budget of the others cannot work."""
    costs, refused = {}, {}
    for name, options in config.systems.items():
        try:
            costs[name] = find_system(name).predict(setting, options)
        except ResourceError as exc:
            refused[name] = f"memory_budget: {exc}"
    if refused and (not is_all or not costs):
        raise ConfigError("; ".join(f"{name}: {reason}" for name, reason in refused.items()))
    return costs, refused


def _plan_system(
    config: Config,
    setting: CostInputs,
    devices: tuple[DevicePlan, ...],
    name: str,
    cost: Prediction,
) -> SystemPlan:
    found, options = find_system(name), config.systems[name]
    form = found.weight_format(setting.model, config.devices, config.dtype, options)
    system = SystemPlan(
        system=found,
        options=options,
        devices=devices[: found.world_size(config.devices)],
        form=form,
        cost=cost,
        check="exact" if found.is_exact(options, config.dtype) else "bounded",
    )
    refusal = _memory_refusal(config, setting, system)
    if config.testbed.backend != "sim":
        refusal = refusal or _disk_refusal(config, setting, form)
    return replace(system, refusal=refusal)


def _memory_refusal(config: Config, setting: CostInputs, system: SystemPlan) -> str | None:
    """Why a system does not fit in this machine's memory; None if it does."""
    cost, limit = system.cost, _memory_limit(setting)
    # A device that reaches its own limit is a result; one that the host cannot hold is not.
    pairs = zip(cost.peak_bytes, system.limits, strict=True)
    need = sum(min(peak, limits.memory or peak) for peak, limits in pairs)
    if need <= limit:
        return None
    where = "one device" if system.world_size == 1 else system.devices_text
    dtype = system.options.compute(config.dtype, setting.max_tokens).dtype
    is_resident = not cost.read_bytes_per_step or cost.scratch_bytes
    what = f"all weights in {dtype} on {where}" if is_resident else where
    return (
        f"needs {format_bytes(need)} of memory ({what}), the limit is"
        f" {format_bytes(limit)} ({MEMORY_SHARE:.0%} of what is free)"
    )


def _disk_refusal(config: Config, setting: CostInputs, form: WeightFormat) -> str | None:
    """Why weights take too much of the disk; None if they do not."""
    most, model = config.weights.max_bytes, setting.model
    # Block files of repeated layers are links; the other forms hold every layer in full.
    if form.shard_plan is not None or not _is_synthetic(config):
        return None
    num_bytes = format_num_bytes(form, model, setting.storage, model.num_layers)
    if num_bytes <= most:
        return None
    return (
        f"needs {format_bytes(num_bytes)} of disk ({form.words}),"
        f" weights.max_bytes is {format_bytes(most)}"
    )


def _memory_limit(setting: CostInputs) -> int:
    return int(MEMORY_SHARE * setting.host.available_memory)


def _plan_check(setting: CostInputs, runs: Sequence[str]) -> tuple[str, str]:
    """What tokens of the systems in `runs` are checked against, and why it is no better."""
    limit, full = _memory_limit(setting), reference_cost(setting).need_bytes
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
    """The check that replaces a reference, as a plan: each system once, synthetic weights."""
    model = reduced_model(plan.model)
    new_tokens = max(plan.new_tokens, min(_CHECK_TOKENS, model.max_positions - plan.prompt_tokens))
    name = Path(plan.config.model.path or plan.config.model.name).resolve().name
    config = replace(
        plan.config,
        model=ModelChoice(f"{name}-two-layers"),
        workload=replace(plan.config.workload, new_tokens=new_tokens),
        repeats=1,
        trace=False,  # nobody looks at the spans of a check
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
    found, asked = system.system, system.options
    form = found.weight_format(model, config.devices, config.dtype, asked)
    options, world_size = found.reduced(asked, system.world_size, model.num_layers)
    return replace(system, options=options, devices=system.devices[:world_size], form=form)


def _distinct_layers(config: Config, model: ModelConfig, storage: str) -> int:
    wanted, given = config.weights.distinct_layers, config.weights.max_bytes
    shares = (options.split for options in config.systems.values())
    shard_plan = make_shard_plan(model, config.devices, next(filter(None, shares), None))
    most = most_distinct_layers(model, shard_plan, storage, given)
    if most < 1:
        least = format_bytes(required_bytes(model, shard_plan, storage, 1))
        raise ConfigError(
            f"weights.max_bytes: got {format_bytes(given)}, one distinct layer of this model takes"
            f" {least}"
        )
    if wanted == "auto":
        return most
    problem = ""
    if int(wanted) > model.num_layers:
        problem = f"the model has {model.num_layers} layers"
    elif int(wanted) > most:
        problem = f"weights.max_bytes={format_bytes(given)} holds {most}; raise it"
    if problem:
        raise ConfigError(f"weights.distinct_layers: got {wanted}, {problem}")
    return int(wanted)
