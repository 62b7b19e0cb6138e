"""Finds systems by name: those of the folders beside this module, and those of other packages.

A folder of `baselines/` has a module `system` with the tuple `SYSTEMS`. Another package names a
`System` as an entry point of the group `tpi_lab.systems`. Installed packages are searched only for
a name that has no folder, or to list all.
"""

import pkgutil
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from importlib import import_module

import baselines
from baselines.base import AnySystem, System
from baselines.cost_inputs import CostInputs, Prediction
from baselines.validators import nearest
from testbed.sim.base import SimOutcome, SimRun
from testbed.sim.calibration import Calibration
from tpi import plugins
from tpi.errors import ConfigError
from tpi.model_config import ModelConfig

GROUP = "tpi_lab.systems"
REFERENCE = "transformers"  # the system whose float32 tokens all others are compared with


def find_system(name: str) -> AnySystem:
    """Return the system of that name.

    Raises:
        ConfigError: There is none, or the package that brings it is broken.
    """
    return _built_in().get(name) or _load(name)


def all_systems() -> tuple[AnySystem, ...]:
    """Every system there is, those of other packages last.

    Raises:
        ConfigError: A package that brings one is broken.
    """
    names = sorted({entry.name for entry in plugins.installed(GROUP)} - {*_built_in()})
    return (*_built_in().values(), *map(_load, names))


def system_names() -> tuple[str, ...]:
    """The names of all systems."""
    return tuple(system.name for system in all_systems())


def reference_cost(inputs: CostInputs, model: ModelConfig | None = None) -> Prediction:
    """Predict the reference, Transformers in float32; on another model, if one is given."""
    system = find_system(REFERENCE)
    inputs = replace(inputs, model=model or inputs.model, dtype="float32")
    return system.predict(inputs, system.options())


def simulate(run: SimRun, calibration: Calibration) -> SimOutcome:
    """Simulate one start with one warm request of the system that a run names.

    Raises:
        ConfigError: It is not simulated, or options that the program would refuse.
        ResourceError: A memory budget that cannot work, as in the program.
    """
    system = find_system(run.system)
    if not system.simulator:
        names = ", ".join(system.name for system in all_systems() if system.simulator)
        raise ConfigError(f"testbed=sim: {system.name} is not simulated; choose among {names}")
    _check(run)
    outcome: SimOutcome = pkgutil.resolve_name(system.simulator)(run, calibration)
    return outcome


def _check(run: SimRun) -> None:
    if not run.devices or len(run.links) != len(run.devices):
        raise ConfigError(
            f"testbed=sim: {len(run.devices)} devices and {len(run.links)} links, expected as many"
        )
    if run.prompt_tokens < 1 or run.new_tokens < 1:
        raise ConfigError(
            f"testbed=sim: {run.prompt_tokens} prompt tokens and {run.new_tokens} new ones, "
            "expected at least 1 each"
        )
    for rank, device in enumerate(run.devices):
        if not device.cores > 0 or (device.disk_read_bps is not None and device.disk_read_bps <= 0):
            raise ConfigError(f"testbed=sim: rank {rank}: cores and disk must be > 0: {device}")


@cache
def _built_in() -> Mapping[str, AnySystem]:
    folders = [each.name for each in pkgutil.iter_modules(baselines.__path__) if each.ispkg]
    modules = [import_module(f"{baselines.__name__}.{folder}.system") for folder in folders]
    found: list[AnySystem] = [system for module in modules for system in module.SYSTEMS]
    return {system.name: system for system in sorted(found, key=lambda each: each.order)}


@cache
def _load(name: str) -> AnySystem:
    for entry in plugins.installed(GROUP):
        if entry.name == name:
            return plugins.load(entry, "system", System)
    raise ConfigError(f"systems: unknown system {name!r}{nearest(name, system_names())}")
