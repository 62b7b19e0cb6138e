"""A plan in words: what will be written, read and needed, and about how long it takes."""

from dataclasses import asdict

from baselines.cost_inputs import parameters_text
from harness.plan.plan import reduced_plan
from harness.plan.types import Plan, SystemPlan
from results.records.testbed_words import device_words, link_words
from testbed.host.rates import Host
from tpi.units import format_bytes, format_seconds

_CHECKS = {
    "exact": "tokens equal to Transformers' in float32",
    "bounded": "tokens within twice Transformers' own 16-bit error of its float32 logits",
}


def describe(plan: Plan, host: Host, to_write: int, pending: list[str]) -> list[tuple[str, str]]:
    """The plan in (heading, text) lines; `pending` are the systems that are not measured yet."""
    config, model = plan.config, plan.model
    lines = [
        (
            "model",
            f"{config.model.path or config.model.name}: {model.num_layers} layers,"
            f" {parameters_text(model)}, stored in {plan.storage},"
            f" computed in {config.dtype}",
        ),
        ("weights", _weights_text(plan, host, to_write)),
    ]
    lines += [(s.name, _system_text(plan, s)) for s in plan.systems]
    lines.insert(2, ("testbed", _testbed_text(plan)))
    lines.append(("check", _check_text(plan)))
    if plan.runnable:
        repeats = "repeat" if config.repeats == 1 else "repeats"
        lines.append(
            (
                "runs",
                f"{config.repeats} {repeats} of a prompt of {plan.prompt_tokens} and"
                f" {plan.new_tokens} new tokens, each after a warm-up of {plan.warmup_tokens}",
            )
        )
    lines += [("cut", text) for text in plan.cuts]
    rates = f"disk {host.read_bps / 1e9:.2g} GB/s, {host.cores} cores"
    text = f"about {format_seconds(plan.predicted_s)} for all of it, an estimate ({rates})"
    if not pending:
        text = "nothing is left to run"
    elif len(pending) < len(plan.runnable):
        text = f"only {', '.join(pending)} is left to run; {text}"
    lines.append(("time", text))
    return lines


def _testbed_text(plan: Plan) -> str:
    testbed = plan.config.testbed
    if not plan.is_emulated:
        return f"{testbed.name} (backend {testbed.backend}): plain processes, nothing is limited"
    names = dict.fromkeys(profile.name for profile in plan.config.profiles)
    factor = plan.dilation.factor
    devices = device_words([asdict(limits) for limits in plan.limits], factor)
    text = f"{testbed.name} (backend {testbed.backend}): devices {', '.join(names)}"
    text += f" ({devices})" if devices else ""
    links = link_words([asdict(link) for link in plan.links], factor)
    text += f"; link {plan.config.link.name} ({links})"
    if plan.dilation.factor > 1:
        text += f"; dilation {plan.dilation.factor:g}"
        text += f", since {plan.dilation.reason}" if plan.dilation.reason else ""
    if plan.dilation.oversubscribed:
        text += f"; oversubscribed: {plan.dilation.oversubscribed}"
    return text


def _weights_text(plan: Plan, host: Host, to_write: int) -> str:
    if plan.synthetic:
        text = f"synthetic, seed {plan.config.weights.seed}"
        if plan.distinct_layers < plan.model.num_layers:
            text += (
                f", {plan.distinct_layers} of {plan.model.num_layers} layers distinct"
                f" (weights.max_bytes={format_bytes(plan.config.weights.max_bytes)})"
            )
    else:
        text = f"of the folder {plan.config.model.path}"
    where = plan.config.weights.dir
    if to_write:
        text += f"; writes {format_bytes(to_write)} to {where}/ ({format_bytes(host.free_disk)}"
        text += " free)"
    elif plan.runnable:
        text += f"; nothing to write, they are in {where}/"
    return text


def _system_text(plan: Plan, system: SystemPlan) -> str:
    if system.refusal is not None:
        return f"infeasible: {system.refusal}"
    cost, threads = system.cost, max(plan.threads_of(system))
    devices = "1 device" if system.world_size == 1 else f"{system.world_size} devices"
    text = f"{devices} x {threads} thread{'s' * (threads > 1)}, needs"
    text += f" {format_bytes(max(cost.peak_bytes))} of memory"
    if system.world_size > 1:
        text += f" on the largest, {format_bytes(cost.need_bytes)} in all"
    if cost.read_bytes_per_step:
        text += f"; reads {format_bytes(cost.read_bytes_per_step)} per token"
    if plan.is_emulated and any(_is_short(plan, system)):
        text += "; more than a device has, so it may end oom"
    return text + f"; about {format_seconds(cost.step_s / plan.dilation.factor)} per token"


def _is_short(plan: Plan, system: SystemPlan) -> list[bool]:
    """For each device, whether a system is predicted to need more than it has."""
    return [
        limits.memory is not None and peak > limits.memory + limits.swap
        for limits, peak in zip(plan.limits, system.cost.peak_bytes, strict=False)
    ]


def _check_text(plan: Plan) -> str:
    if plan.check == "none":
        return "unchecked" + (f" ({plan.check_reason})" if plan.check_reason else "")
    if plan.check == "reference":
        kinds = {system.check for system in plan.runnable}
        return "; ".join(text for kind, text in _CHECKS.items() if kind in kinds)
    small = reduced_plan(plan)
    num_bytes = format_bytes(sum(small.forms.values()))
    return (
        f"first the same shape with two layers must give Transformers' tokens"
        f" ({plan.check_reason}); writes {num_bytes} for it and removes them again"
    )
