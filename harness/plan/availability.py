"""Which systems can run as they are asked for; nothing is imported to find out.

If a system that was named cannot run, the command is refused before anything starts, with all
systems and reasons at once. One that came by `systems=all` becomes a row that says why.
"""

from dataclasses import replace
from importlib.util import find_spec

from baselines.base import AnySystem
from baselines.options import SystemOptions
from baselines.registry import find_system
from harness.config.config import Config
from tpi.errors import ConfigError
from tpi.model_config import ModelConfig


def split_available(
    config: Config, model: ModelConfig, *, is_all: bool
) -> tuple[Config, dict[str, str]]:
    """The systems that can run, and why each of the others cannot.

    Raises:
        ConfigError: One that was asked for by name cannot run, or none can.
    """
    problems = {
        name: " and ".join(found)
        for name, options in config.systems.items()
        if (found := _problems(find_system(name), options, config, model))
    }
    if problems and (not is_all or len(problems) == len(config.systems)):
        each = [f"{name} cannot run: {found}" for name, found in problems.items()]
        raise ConfigError(f"systems: {'; '.join(each)}")
    systems = {name: o for name, o in config.systems.items() if name not in problems}
    return replace(config, systems=systems), problems


def _problems(
    system: AnySystem, options: SystemOptions, config: Config, model: ModelConfig
) -> list[str]:
    found: list[str] = []
    if config.testbed.backend != "sim":
        absent = [package for package in system.packages if find_spec(package) is None]
        advice = f": pip install -e '.[{system.extra}]'" if system.extra else ""
        found = [f"the package {package} is not installed{advice}" for package in absent]
    elif not system.simulator:
        return ["the simulator has no model of it"]
    return found + system.problems(model, config.devices, config.dtype, options)
