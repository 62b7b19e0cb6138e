"""What is cut so that a plan fits `max_minutes`: repeats first, then new tokens. Pure."""

from collections.abc import Mapping
from dataclasses import replace

from baselines.cost_inputs import CostInputs
from baselines.registry import REFERENCE, reference_cost
from baselines.weight_formats import write_seconds
from harness.config.config import Config
from harness.plan.types import Plan, reduced_model
from results.records.notes import Cut
from testbed.host.rates import Host
from testbed.limits.limits import DevicePlan
from tpi.errors import ConfigError
from tpi.model_config import ModelConfig
from tpi.units import format_seconds
from tpi.weights.hf_folder import required_hf_bytes

LEAST_TOKENS = 3  # two gaps, the least that shows a spread


def cost_inputs_of(
    config: Config,
    model: ModelConfig,
    storage: str,
    prompt_tokens: int,
    host: Host,
    devices: tuple[DevicePlan, ...] = (DevicePlan(),),
) -> CostInputs:
    """What all systems of a configuration have in common."""
    return CostInputs(
        model=model,
        storage=storage,
        dtype=config.dtype,
        threads=devices[0].limits.threads,
        devices=devices,
        prompt_tokens=prompt_tokens,
        new_tokens=config.workload.new_tokens,
        host=host,
    )


def fit_time(plan: Plan) -> Plan:
    """Cut repeats, then new tokens, until the prediction fits `max_minutes`."""
    limit_s = plan.config.max_minutes * 60
    for candidate in _shorter(plan):
        seconds = _predicted_s(candidate)
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


def _cuts(asked: Plan, plan: Plan) -> tuple[Cut, ...]:
    pairs: Mapping[str, tuple[int, int]] = {
        "repeats": (asked.config.repeats, plan.config.repeats),
        "new tokens": (asked.new_tokens, plan.new_tokens),
        "warm-up tokens": (asked.warmup_tokens, plan.warmup_tokens),
    }
    return tuple(
        Cut(name, before, after, asked.config.max_minutes)
        for name, (before, after) in pairs.items()
        if before != after
    )


def _predicted_s(plan: Plan) -> float:
    """Seconds for everything, as if nothing had been done before."""
    seconds = write_seconds(sum(plan.forms.values()), plan.host)
    for system in plan.runnable:
        once = system.cost.start_s + system.cost.request_s(plan.warmup_tokens)
        seconds += plan.config.repeats * (once + system.cost.request_s(plan.new_tokens))
    return seconds + _check_s(plan)


def _check_s(plan: Plan) -> float:
    if plan.check == "none":
        return 0.0
    # The reference runs beside the devices, on the whole host.
    setting = cost_inputs_of(plan.config, plan.model, plan.storage, plan.prompt_tokens, plan.host)
    if plan.check == "reference":
        if any(s.name == REFERENCE and s.check == "exact" for s in plan.runnable):
            return 0.0  # its own tokens are the reference
        cost = reference_cost(setting)
        return cost.start_s + cost.request_s(plan.new_tokens)
    cut = reduced_model(plan.model)
    cost = reference_cost(setting, cut)
    share = cut.num_layers / plan.model.num_layers
    seconds = 2 * write_seconds(required_hf_bytes(cut, plan.storage), plan.host)
    seconds += cost.start_s + cost.request_s(plan.new_tokens)
    for system in plan.checked_first:
        seconds += system.cost.start_s + 2 * share * system.cost.request_s(plan.new_tokens)
    return seconds
