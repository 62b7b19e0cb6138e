"""A simulated plan in words: what is asked of the simulator, and from which costs."""

from dataclasses import asdict

from baselines.cost_inputs import parameters_text
from harness.plan.sim_plan import SimPlan, limits_of
from results.records.testbed_words import device_words, link_words
from testbed.sim.base import SimRun


def describe_simulation(plan: SimPlan, pending: list[str]) -> list[tuple[str, str]]:
    """The plan in (heading, text) lines; `pending` are the systems that are not simulated yet."""
    config, model = plan.config, plan.model
    lines = [
        (
            "model",
            f"{config.model.path or config.model.name}: {model.num_layers} layers,"
            f" {parameters_text(model)}, stored in {plan.storage},"
            f" computed in {config.dtype}",
        ),
        ("simulated", "nothing is started, no weights are read or written, no token is computed"),
        ("testbed", _testbed_text(plan)),
        ("costs", f"calibration {plan.calibration_name}: {plan.calibration.host}"),
    ]
    lines += [(run.system, _run_text(run, config.dtype)) for run in plan.runs]
    lines.append(
        (
            "request",
            f"a prompt of {plan.prompt_tokens} and {config.workload.new_tokens} new tokens, once:"
            " the answer is always the same",
        )
    )
    if not pending:
        lines.append(("time", "nothing is left to simulate"))
    return lines


def _testbed_text(plan: SimPlan) -> str:
    config = plan.config
    runs = max(plan.runs, key=lambda run: run.world_size)
    names = ", ".join(dict.fromkeys(profile.name for profile in config.profiles))
    cores = [device.cores for device in runs.devices]
    words = [f"each worth {min(cores):.3g} of the calibrated cores"]
    if min(cores) != max(cores):
        words = [f"worth {min(cores):.3g} to {max(cores):.3g} of the calibrated cores"]
    words.append(device_words([asdict(limits_of(device)) for device in runs.devices], 1.0))
    links = link_words([asdict(link) for link in runs.links], 1.0)
    return (
        f"{config.testbed.name} (backend {config.testbed.backend}): devices {names}"
        f" ({', '.join(word for word in words if word)}); link {config.link.name} ({links})"
    )


def _run_text(run: SimRun, dtype: str) -> str:
    text = "1 device" if run.world_size == 1 else f"{run.world_size} devices"
    said = ("window", "memory_budget", "allreduce", "wire_dtype", "overlap", "max_memory")
    options = [
        f"{name} {str(run.options[name]).lower()}"
        for name in said
        if run.options.get(name) is not None
    ]
    if run.dtype != dtype:
        options.append(f"dtype {run.dtype}")
    return ", ".join([text, *options])
