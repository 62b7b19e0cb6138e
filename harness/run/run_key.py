"""What decides the numbers of one system in one plan; its hash names the run."""

from collections.abc import Mapping
from dataclasses import asdict

from baselines.registry import REFERENCE, SYSTEMS
from harness.plan.types import Plan, SystemPlan
from harness.run.source_digest import source_digest
from harness.run.weights import WeightSet
from testbed.host.environment import DEPENDENCIES, dependency_versions, host_fingerprint
from testbed.image import image_tag
from testbed.sim.base import SimRun
from tpi.model_config import config_to_json

# What makes and measures the devices of a backend. That of Docker imports the limits, links, probes
# and meters; that of local processes limits nothing.
_BACKENDS = {"local": "testbed.local.local", "docker": "testbed.docker.testbed"}
_SIMULATOR = "baselines.simulate"
_REFERENCE = "baselines.transformers.reference"
_SYNTHETIC = "tpi.weights.synthetic"


def decisive(
    plan: Plan,
    system: SystemPlan,
    weights: WeightSet,
    prompt_ids: tuple[int, ...],
    environment: Mapping[str, object],
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
        "host": host_fingerprint(environment),
        "versions": versions_of(system.name),
        "source": measured_digest(system.name, plan.config.testbed.backend),
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
    return source_digest(_REFERENCE, _module(REFERENCE))


def measured_digest(system: str, backend: str) -> str:
    """Digest of the source that a system's numbers come from, on devices of a backend.

    The program computes them, the backend enforces limits and links and measures, and what wrote
    the weights decides how they are read.
    """
    writers = SYSTEMS[system].writer, _SYNTHETIC
    return source_digest(_module(system), _BACKENDS[backend], *writers)


def _module(system: str) -> str:
    """The module that a system's program runs: what follows `-m`."""
    return SYSTEMS[system].program[1]


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


def simulator_digest() -> str:
    """Digest of the source that simulated numbers come from.

    Modules of this project's programs belong to it: the simulator takes shapes, shares, sizes of
    blocks and memory from them.
    """
    return source_digest(_SIMULATOR)


def versions_of(system: str) -> dict[str, str | None]:
    """Installed versions of what a system's numbers come from."""
    return dependency_versions((*DEPENDENCIES, *SYSTEMS[system].distributions))
