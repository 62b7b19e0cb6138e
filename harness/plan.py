"""From a configuration to what will be run: pure, made before anything starts.

`make_plan` decides how many layers are stored, which systems fit in memory, how tokens will be
checked, and what is cut so that all of it fits `max_minutes`; `plan_text.py` puts it in words. A
plan follows from the configuration and from what the host has at that moment: with less memory
free, a system may be refused that was measured before (`Experiment` then keeps the measurement).
What earlier runs left behind changes what is still to do, never what is cut. Read `make_plan`
first.
"""

from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from pathlib import Path

from harness.config import Config, ModelChoice, SystemOptions, TpiOptions
from harness.host import Host
from harness.predict import (
    Cost,
    most_distinct_layers,
    tpi_cost,
    transformers_cost,
    write_seconds,
)
from tpi.config import ModelConfig
from tpi.errors import ConfigError, ResourceError
from tpi.units import format_bytes, format_seconds
from tpi.weights.hf_folder import required_hf_bytes
from tpi.weights.shard import ShardPlan, make_shard_plan
from tpi.weights.split import required_bytes

MEMORY_SHARE = 0.9  # of what is free; the rest is for everybody else
WARMUP_TOKENS = 2  # a prefill and a step: every path once
LEAST_TOKENS = 3  # two gaps, the least that shows a spread
_CHECK_LAYERS, _CHECK_TOKENS = 2, 8


@dataclass(frozen=True, slots=True)
class SystemPlan:
    """One system: what it needs, or why it is not run."""

    name: str
    options: SystemOptions
    world_size: int
    cost: Cost
    refusal: str | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that will be done.

    Attributes:
        config: As it will run, cuts applied.
        storage: Dtype of the stored weights.
        distinct_layers: Layers that are stored, of `model.num_layers`.
        check: How tokens are checked: `exact`, `bounded`, `two_layer` or `none`.
        check_reason: Why it is not a check against the whole model; empty otherwise.
        shards_bytes, hf_bytes: Bytes that either form takes on disk; 0 where it is not needed.
        predicted_s: An estimate for all of it, preparation included.
        cuts: What was cut to fit `max_minutes`, in words.
    """

    config: Config
    model: ModelConfig
    shard_plan: ShardPlan
    storage: str
    synthetic: bool
    distinct_layers: int
    prompt_tokens: int
    warmup_tokens: int
    systems: tuple[SystemPlan, ...]
    memory_limit: int
    check: str
    check_reason: str
    shards_bytes: int
    hf_bytes: int
    predicted_s: float
    cuts: tuple[str, ...]

    @property
    def new_tokens(self) -> int:
        """Tokens of a measured request."""
        return self.config.workload.new_tokens

    @property
    def max_tokens(self) -> int:
        """Prompt and answer of the longest request."""
        return self.prompt_tokens + max(self.new_tokens, self.warmup_tokens)

    @property
    def runnable(self) -> tuple[SystemPlan, ...]:
        """The systems that will be started."""
        return tuple(system for system in self.systems if system.refusal is None)


def make_plan(config: Config, model: ModelConfig, prompt_tokens: int, host: Host) -> Plan:
    """Plan all runs of a configuration.

    Raises:
        ConfigError: It cannot be done as asked; the message has the number and what would help.
    """
    _check_fits_model(config, model, prompt_tokens)
    synthetic = is_synthetic(config)
    storage = model.dtype if config.weights.dtype == "auto" else config.weights.dtype
    options = config.systems.get("tpi", TpiOptions())
    shard_plan = make_shard_plan(
        model, config.devices, options.shares if isinstance(options, TpiOptions) else None
    )
    limit = int(MEMORY_SHARE * host.available_memory)
    systems = _plan_systems(config, model, shard_plan, storage, prompt_tokens, host, limit)
    runs = {s.name for s in systems if s.refusal is None}
    check, reason = _plan_check(config, model, storage, limit, host, runs)
    layers = _distinct_layers(config, model, shard_plan, storage) if synthetic else model.num_layers
    # Transformers reads this form itself; so does the reference, for whichever system runs.
    needs_hf = "transformers" in runs or (runs and check in ("exact", "bounded"))
    plan = Plan(
        config=config,
        model=model,
        shard_plan=shard_plan,
        storage=storage,
        synthetic=synthetic,
        distinct_layers=layers,
        prompt_tokens=prompt_tokens,
        warmup_tokens=min(WARMUP_TOKENS, config.workload.new_tokens),
        systems=systems,
        memory_limit=limit,
        check=check if runs else "none",
        check_reason=reason,
        shards_bytes=required_bytes(model, shard_plan, storage, layers) if "tpi" in runs else 0,
        hf_bytes=required_hf_bytes(model, storage) if synthetic and needs_hf else 0,
        predicted_s=0.0,
        cuts=(),
    )
    return _fit_time(plan, host)


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


def _check_fits_model(config: Config, model: ModelConfig, prompt_tokens: int) -> None:
    total = prompt_tokens + config.workload.new_tokens
    if total > model.max_positions:
        raise ConfigError(
            f"workload: a prompt of {prompt_tokens} and {config.workload.new_tokens} new tokens are"
            f" {total} positions, the model has {model.max_positions}; make either shorter"
        )


def _plan_systems(
    config: Config,
    model: ModelConfig,
    shard_plan: ShardPlan,
    storage: str,
    prompt_tokens: int,
    host: Host,
    limit: int,
) -> tuple[SystemPlan, ...]:
    systems = []
    for name, options in config.systems.items():
        if isinstance(options, TpiOptions):
            try:
                cost = tpi_cost(
                    model,
                    shard_plan,
                    options,
                    storage=storage,
                    dtype=config.dtype,
                    prompt_tokens=prompt_tokens,
                    max_tokens=prompt_tokens + config.workload.new_tokens,
                    threads=config.device.threads,
                    host=host,
                )
            except ResourceError as exc:
                raise ConfigError(f"memory_budget: {exc}") from exc
            what = f"{config.devices} devices"
        else:
            cost = _transformers(config, model, storage, prompt_tokens, host)
            what = f"all weights in {config.dtype} on one device"
        refusal = None
        if cost.need_bytes > limit:
            refusal = (
                f"needs {format_bytes(cost.need_bytes)} of memory ({what}), the limit is"
                f" {format_bytes(limit)} ({MEMORY_SHARE:.0%} of what is free)"
            )
        systems.append(SystemPlan(name, options, len(cost.peak_bytes), cost, refusal))
    return tuple(systems)


def _transformers(
    config: Config,
    model: ModelConfig,
    storage: str,
    prompt_tokens: int,
    host: Host,
    dtype: str | None = None,
) -> Cost:
    return transformers_cost(
        model,
        storage=storage,
        dtype=dtype or config.dtype,
        prompt_tokens=prompt_tokens,
        threads=config.device.threads,
        host=host,
    )


def is_exact(config: Config) -> bool:
    """Whether tokens must equal the reference's: nothing is rounded to 16 bit on the way."""
    tpi = config.systems.get("tpi")
    wire = tpi.wire_dtype if isinstance(tpi, TpiOptions) else "float32"
    return config.dtype == "float32" and wire == "float32"


def _plan_check(
    config: Config, model: ModelConfig, storage: str, limit: int, host: Host, runs: Set[str]
) -> tuple[str, str]:
    """How tokens of the systems in `runs` are checked, and why it is no better than that."""
    full = _transformers(config, model, storage, 1, host, "float32").need_bytes
    if full <= limit:
        return ("exact" if is_exact(config) else "bounded"), ""
    why = f"the reference needs {format_bytes(full)}, the limit is {format_bytes(limit)}"
    if "tpi" not in runs:
        return "none", f"{why}; two layers of it would check tpi alone, which is not run"
    cut = two_layer_model(model)
    small = _transformers(config, cut, storage, 1, host, "float32").need_bytes
    if small <= limit:
        return "two_layer", why
    return "none", f"{why}; even two layers of it need {format_bytes(small)}"


def two_layer_model(model: ModelConfig) -> ModelConfig:
    """The same shape, cut to two layers."""
    return replace(model, num_layers=min(_CHECK_LAYERS, model.num_layers))


def two_layer_plan(plan: Plan) -> Plan:
    """The check that stands in for a reference, as a plan: `tpi` alone, once, synthetic weights."""
    model = two_layer_model(plan.model)
    new_tokens = max(plan.new_tokens, min(_CHECK_TOKENS, model.max_positions - plan.prompt_tokens))
    name = Path(plan.config.model.path or plan.config.model.name).resolve().name
    config = replace(
        plan.config,
        model=ModelChoice(f"{name}-two-layers"),
        workload=replace(plan.config.workload, new_tokens=new_tokens),
        repeats=1,
    )
    shard_plan = make_shard_plan(model, plan.shard_plan.world_size, plan.shard_plan.weights)
    return replace(
        plan,
        config=config,
        model=model,
        shard_plan=shard_plan,
        synthetic=True,
        distinct_layers=model.num_layers,
        warmup_tokens=1,
        systems=tuple(s for s in plan.systems if s.name == "tpi"),
        check="exact" if is_exact(plan.config) else "bounded",
        check_reason="",
        shards_bytes=required_bytes(model, shard_plan, plan.storage),
        hf_bytes=required_hf_bytes(model, plan.storage),
        cuts=(),
    )


def _distinct_layers(
    config: Config, model: ModelConfig, shard_plan: ShardPlan, storage: str
) -> int:
    wanted = config.weights.distinct_layers
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


def _predicted_s(plan: Plan, host: Host) -> float:
    """Seconds for everything, as if nothing had been done before."""
    seconds = write_seconds(plan.shards_bytes + plan.hf_bytes, host)
    for system in plan.runnable:
        once = system.cost.start_s + system.cost.request_s(plan.warmup_tokens)
        seconds += plan.config.repeats * (once + system.cost.request_s(plan.new_tokens))
    return seconds + _check_s(plan, host)


def _check_s(plan: Plan, host: Host) -> float:
    if plan.check == "none":
        return 0.0
    config, model = plan.config, plan.model
    if plan.check != "two_layer":
        if plan.check == "exact" and any(s.name == "transformers" for s in plan.runnable):
            return 0.0  # its own tokens are the reference
        cost = _transformers(config, model, plan.storage, plan.prompt_tokens, host, "float32")
        return cost.start_s + cost.request_s(plan.new_tokens)
    cut = two_layer_model(model)
    cost = _transformers(config, cut, plan.storage, plan.prompt_tokens, host, "float32")
    tpi = next(s.cost for s in plan.runnable if s.name == "tpi")
    share = cut.num_layers / model.num_layers
    return (
        2 * write_seconds(required_hf_bytes(cut, plan.storage), host)
        + cost.start_s
        + cost.request_s(plan.new_tokens)
        + tpi.start_s
        + 2 * share * tpi.request_s(plan.new_tokens)
    )


def _fit_time(plan: Plan, host: Host) -> Plan:
    """Cut repeats, then new tokens, until the prediction fits `max_minutes`."""
    limit_s = plan.config.max_minutes * 60
    for candidate in _shorter(plan):
        seconds = _predicted_s(candidate, host)
        if seconds <= limit_s:
            return replace(candidate, predicted_s=seconds, cuts=_cuts(plan, candidate))
    raise ConfigError(
        f"max_minutes: got {plan.config.max_minutes:g}, but 1 repeat of {candidate.new_tokens} new"
        f" tokens is predicted to take {format_seconds(seconds)}; say"
        f" max_minutes={seconds / 60 + 1:.0f}, or take a smaller model"
    )


def _shorter(plan: Plan) -> list[Plan]:
    """The plan and ever shorter ones: fewer repeats first, then fewer tokens."""
    tokens = plan.new_tokens
    plans = [_with(plan, r, tokens, plan.warmup_tokens) for r in range(plan.config.repeats, 0, -1)]
    least = min(LEAST_TOKENS, tokens)
    return plans + [_with(plan, 1, n, 1) for n in range(tokens, least - 1, -1)]


def _with(plan: Plan, repeats: int, new_tokens: int, warmup_tokens: int) -> Plan:
    workload = replace(plan.config.workload, new_tokens=new_tokens)
    config = replace(plan.config, repeats=repeats, workload=workload)
    return replace(plan, config=config, warmup_tokens=warmup_tokens)


def _cuts(asked: Plan, plan: Plan) -> tuple[str, ...]:
    pairs: Mapping[str, tuple[int, int]] = {
        "repeats": (asked.config.repeats, plan.config.repeats),
        "new tokens": (asked.new_tokens, plan.new_tokens),
        "warm-up tokens": (asked.warmup_tokens, plan.warmup_tokens),
    }
    return tuple(
        f"{name} {before} -> {after}, to fit max_minutes={asked.config.max_minutes:g}"
        for name, (before, after) in pairs.items()
        if before != after
    )
