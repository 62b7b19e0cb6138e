"""Everything that decides the numbers of one system in one plan; its hash names the run."""

import json
from dataclasses import asdict

from msgspec import structs

from baselines.registry import REFERENCE, find_system
from harness.plan.types import Plan, SystemPlan
from harness.run.source_digest import source_digest
from harness.run.weights import WeightSet
from results.records.hashing import digest_of, make_run_id
from testbed.host.environment import (
    DEPENDENCIES,
    dependency_versions,
    host_environment,
    host_fingerprint,
)
from testbed.image import image_tag
from testbed.sim.calibration import Calibration
from tpi.comm.allreduces.registry import find_allreduce
from tpi.model_config import config_to_json
from tpi.options import ComputeOptions

# What makes and measures the devices of a backend. That of Docker imports the limits, links, probes
# and meters; that of local processes limits nothing.
_BACKENDS = {"local": "testbed.local.local", "docker": "testbed.docker.testbed"}
_REFERENCE = "baselines.transformers.reference"
_SYNTHETIC = "tpi.weights.synthetic"
_SUMS = ComputeOptions().allreduce  # of runs that choose none of another package


def run_name(plan: Plan, system: SystemPlan, weights: WeightSet) -> str:
    """What the run of a system is called; a second attempt has a number behind it."""
    return make_run_id(system.name, decisive(plan, system, weights))


def decisive(plan: Plan, system: SystemPlan, weights: WeightSet) -> dict[str, object]:
    """Everything that decides the numbers of a system, and nothing else."""
    backend, costs = plan.config.testbed.backend, plan.calibration
    compute = system.options.compute(plan.config.dtype, plan.max_tokens)
    return {
        "system": system.name,
        "options": structs.asdict(system.options),
        "model": config_to_json(plan.model),
        "storage": plan.storage,
        "new_tokens": plan.new_tokens,
        "dtype": plan.config.dtype,
        "backend": backend,
        "limits": [asdict(limits) for limits in system.limits],
        "links": [asdict(device.link) for device in system.devices if plan.has_limits],
        "source": digest_of_source(system.name, backend, compute.allreduce),
        # Only if it is on: keeping spans takes memory. Without it ids are as before.
        **({"trace": True} if plan.config.trace else {}),
        **(_simulated(plan, costs) if costs else _measured(plan, system, weights)),
    }


def _simulated(plan: Plan, calibration: Calibration) -> dict[str, object]:
    """The calibration and the length of the prompt; the host has no part in it."""
    return {
        "prompt_tokens": plan.prompt_tokens,
        "calibration": digest_of(calibration_content(calibration)),
    }


def _measured(plan: Plan, system: SystemPlan, weights: WeightSet) -> dict[str, object]:
    config = plan.config
    emulated: dict[str, object] = {
        "link_backend": config.link.backend,
        "faults": [asdict(fault) for fault in config.link.faults],
        "dilation": plan.dilation.factor,
        "image": image_tag(),
    }
    return {
        "weights": weights.identity,
        "distinct_layers": plan.distinct_layers,
        "prompt_ids": plan.prompt_ids,
        "warmup_tokens": plan.warmup_tokens,
        "time_scale": config.testbed.time_scale,
        "host": host_fingerprint(host_environment()),
        "versions": versions_of(system.name),
        **(emulated if plan.is_emulated else {}),
    }


def calibration_content(calibration: Calibration) -> dict[str, object]:
    """A calibration in plain values."""
    content: dict[str, object] = json.loads(json.dumps(asdict(calibration)))
    return content


def reference_digest() -> str:
    """Digest of the source that the reference's tokens come from."""
    return source_digest(_REFERENCE, find_system(REFERENCE).program[1])


def digest_of_source(name: str, backend: str, allreduce: str = _SUMS) -> str:
    """Digest of the source that a system's numbers come from, on devices of a backend.

    The program computes them, the backend enforces limits and links and measures, and what wrote
    the weights decides how they are read. Simulated numbers come from the system's simulated
    schedule and what it imports. System and allreduce may be of other packages.
    """
    system, sums = find_system(name), type(find_allreduce(allreduce)).__module__
    if backend == "sim":
        return source_digest(system.simulator.partition(":")[0], sums)
    program = system.program[1]  # what follows `-m`
    return source_digest(program, _BACKENDS[backend], system.writer, _SYNTHETIC, sums)


def versions_of(name: str) -> dict[str, str | None]:
    """Installed versions of the packages that decide a system's numbers."""
    return dependency_versions((*DEPENDENCIES, *find_system(name).distributions))
