"""What decides the numbers of one system in one plan; its hash names the run."""

import functools
from dataclasses import asdict
from pathlib import Path

from harness.planned import Plan, SystemPlan
from harness.systems import SYSTEMS
from harness.weights import WeightSet
from results.environment import DEPENDENCIES, HostFacts, dependency_versions, host_fingerprint
from results.identity import content_digest
from testbed.image import image_tag
from testbed.sim.base import SimRun
from tpi.config import config_to_json

_ROOT = Path(__file__).parent.parent
_SIMULATOR = _ROOT / "testbed" / "sim"


def decisive(
    plan: Plan,
    system: SystemPlan,
    weights: WeightSet,
    prompt_ids: tuple[int, ...],
    host: HostFacts,
) -> dict[str, object]:
    """Everything that decides the numbers of a system, and nothing else."""
    return {
        "system": system.name,
        "options": asdict(system.options),
        "model": config_to_json(plan.model),
        "weights": weights.identity,
        "storage": plan.storage,
        "distinct_layers": plan.distinct_layers,
        "prompt_ids": prompt_ids,
        "new_tokens": plan.new_tokens,
        "warmup_tokens": plan.warmup_tokens,
        "dtype": plan.config.dtype,
        "devices": system.world_size,
        "testbed": _testbed(plan, system),
        "host": host_fingerprint(host),
        "versions": versions_of(system.name),
        "source": source_digest(system.name),
        # Only where it is on: keeping spans takes memory. Without it ids are what they were.
        **({"trace": True} if plan.config.trace else {}),
    }


def _testbed(plan: Plan, system: SystemPlan) -> dict[str, object]:
    """What devices and links are, as they are enforced, and what enforces them."""
    config, count = plan.config, system.world_size
    emulated: dict[str, object] = {
        "profiles": [asdict(profile) for profile in config.profiles[:count]],
        "links": [asdict(link) for link in plan.links[:count]],
        "link_backend": config.link.backend,
        "faults": [asdict(fault) for fault in config.link.faults],
        "dilation": plan.dilation.factor,
        "image": image_tag(),
    }
    return {
        "backend": config.testbed.backend,
        "time_scale": config.testbed.time_scale,
        "limits": [asdict(limits) for limits in plan.limits[:count]],
        **(emulated if plan.is_emulated else {}),
    }


def reference_digest() -> str:
    """Digest of the source that the reference's tokens come from."""
    names = ("reference.py", "model.py", "huggingface.py", "transformers.py")
    return content_digest([_ROOT / "baselines" / name for name in names])


def source_digest(system: str) -> str:
    """Digest of the source that a system's numbers come from."""
    modules = [_ROOT / "baselines" / f"{name}.py" for name in SYSTEMS[system].sources]
    # The simulator has no part in what is measured.
    return content_digest([_ROOT / "tpi", _ROOT / "testbed", *modules], without=[_SIMULATOR])


def simulated_decisive(run: SimRun, calibration_digest: str) -> dict[str, object]:
    """Everything that decides the numbers of a simulated system: no host is among it."""
    return {
        "system": run.system,
        "options": dict(run.options),
        "model": config_to_json(run.model),
        "storage": run.storage,
        "dtype": run.dtype,
        "prompt_tokens": run.prompt_tokens,
        "new_tokens": run.new_tokens,
        "devices": [asdict(device) for device in run.devices],
        "testbed": {"backend": "sim", "links": [asdict(link) for link in run.links]},
        "calibration": calibration_digest,
        "source": simulator_digest(),
        **({"trace": True} if run.keep_spans else {}),
    }


@functools.cache  # a sweep asks for it again and again
def simulator_digest() -> str:
    """Digest of the source that simulated numbers come from.

    That of this project's programs belongs to it: the simulator takes shapes, shares, sizes of
    blocks and memory from them.
    """
    sources = [_SIMULATOR, _ROOT / "testbed" / "link.py", _ROOT / "tpi"]
    return content_digest(sources, without=[_SIMULATOR / "reference.json"])


def versions_of(system: str) -> dict[str, str | None]:
    """Installed versions of what a system's numbers come from."""
    return dependency_versions((*DEPENDENCIES, *SYSTEMS[system].distributions))
