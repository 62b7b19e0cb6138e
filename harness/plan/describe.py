"""A plan in words: what will be written, read and needed, and about how long it takes."""

from collections.abc import Sequence

from baselines.cost_inputs import parameters_text
from harness.plan.plan import reduced_plan
from harness.plan.types import Plan, SystemPlan
from results.records.testbed_words import device_words, link_words
from testbed.sim.calibration import Calibration
from tpi.units import counted, format_bytes, format_seconds

_CHECKS = {
    "exact": "tokens equal to Transformers' in float32",
    "bounded": "tokens within twice Transformers' own 16-bit error of its float32 logits",
}


def describe(plan: Plan, to_write: int, pending: Sequence[str]) -> list[tuple[str, str]]:
    """The plan in (heading, text) lines; `pending` are the systems that have something to do."""
    config, model = plan.config, plan.model
    what = (
        f"{config.model.path or config.model.name}: {model.num_layers} layers,"
        f" {parameters_text(model)}, stored in {plan.storage}, computed in {config.dtype}"
    )
    where = ("testbed", _testbed_text(plan))
    if plan.calibration is not None:
        return [("model", what), *_simulation(plan, where, plan.calibration, pending)]
    lines = [("model", what), ("weights", _weights_text(plan, to_write)), where]
    lines += [(system.name, _system_text(plan, system)) for system in plan.systems]
    lines.append(("check", _check_text(plan)))
    if plan.runnable:
        runs = f"{counted(config.repeats, 'repeat')} of a prompt of {plan.prompt_tokens}"
        runs += f" and {plan.new_tokens} new tokens, each after a warm-up of {plan.warmup_tokens}"
        lines.append(("runs", runs))
    lines += [("cut", str(cut)) for cut in plan.cuts]
    return [*lines, ("time", _time_text(plan, pending))]


def _simulation(
    plan: Plan, where: tuple[str, str], calibration: Calibration, pending: Sequence[str]
) -> list[tuple[str, str]]:
    name, host = plan.config.testbed.calibration, calibration.host
    request = f"a prompt of {plan.prompt_tokens} and {plan.new_tokens} new tokens, once"
    lines = [
        ("simulated", "nothing is started, no weights are read or written, no token is computed"),
        where,
        ("costs", f"calibration {name}: {host}"),
        *((system.name, _simulated_text(plan, system)) for system in plan.systems),
        ("request", f"{request}: the answer is always the same"),
    ]
    return lines if pending else [*lines, ("time", "nothing is left to simulate")]


def _testbed_text(plan: Plan) -> str:
    testbed, factor = plan.config.testbed, plan.dilation.factor
    text = f"{testbed.name} (backend {testbed.backend}):"
    if not plan.has_limits:
        return f"{text} plain processes, nothing is limited"
    # As many devices are simulated as the largest system uses.
    devices = max((system.devices for system in plan.systems), key=len)
    devices = devices if plan.is_simulated else plan.devices
    worth = _worth_text([d.limits.cpus or 1.0 for d in devices]) if plan.is_simulated else ""
    known = ", ".join(filter(None, [worth, device_words([d.limits for d in devices], factor)]))
    text += f" devices {', '.join(dict.fromkeys(device.name for device in plan.devices))}"
    text += f" ({known})" if known else ""
    text += f"; link {plan.config.link.name} ({link_words([d.link for d in devices], factor)})"
    if factor > 1:
        text += f"; dilation {factor:g}"
        text += f", since {plan.dilation.reason}" if plan.dilation.reason else ""
    if plan.dilation.oversubscribed:
        text += f"; oversubscribed: {plan.dilation.oversubscribed}"
    return text


def _worth_text(cores: Sequence[float]) -> str:
    if min(cores) == max(cores):
        return f"each worth {min(cores):.3g} of the calibrated cores"
    return f"worth {min(cores):.3g} to {max(cores):.3g} of the calibrated cores"


def _weights_text(plan: Plan, to_write: int) -> str:
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
        free = format_bytes(plan.host.free_disk)
        text += f"; writes {format_bytes(to_write)} to {where}/ ({free} free)"
    elif plan.runnable:
        text += f"; nothing to write, they are in {where}/"
    return text


def _system_text(plan: Plan, system: SystemPlan) -> str:
    if system.refusal is not None:
        return f"infeasible: {system.refusal}"
    cost, threads = system.cost, max(system.threads)
    text = f"{system.devices_text} x {threads} thread{'s' * (threads > 1)}, needs"
    text += f" {format_bytes(max(cost.peak_bytes))} of memory"
    if system.world_size > 1:
        text += f" on the largest, {format_bytes(cost.need_bytes)} in all"
    if cost.read_bytes_per_step:
        text += f"; reads {format_bytes(cost.read_bytes_per_step)} per token"
    if system.is_short:
        text += "; more than a device has, so it may end oom"
    return text + f"; about {format_seconds(cost.step_s / plan.dilation.factor)} per token"


def _simulated_text(plan: Plan, system: SystemPlan) -> str:
    shown = {name: getattr(system.options, name) for name in system.options.shown}
    words = [f"{name} {str(value).lower()}" for name, value in shown.items() if value is not None]
    dtype = system.options.compute(plan.config.dtype, plan.max_tokens).dtype
    own = [f"dtype {dtype}"] if dtype != plan.config.dtype else []
    return ", ".join([system.devices_text, *words, *own])


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


def _time_text(plan: Plan, pending: Sequence[str]) -> str:
    if not pending:
        return "nothing is left to run"
    rates = f"disk {plan.host.read_bps / 1e9:.2g} GB/s, {plan.host.cores} cores"
    text = f"about {format_seconds(plan.predicted_s)} for all of it, an estimate ({rates})"
    is_part = len(pending) < len(plan.runnable)
    return f"only {', '.join(pending)} is left to run; {text}" if is_part else text
