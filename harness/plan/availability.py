"""Which systems can run as they are asked for; nothing is imported to find out.

A system that was named and cannot run is refused before anything starts, all of them and all
reasons at once; one that came by `systems=all` becomes a row of the table that says why.
"""

from dataclasses import replace
from importlib.util import find_spec

from baselines.llamacpp import gguf_layout
from baselines.options import LlamacppOptions, PipelineOptions, SystemOptions
from baselines.pipeline import stages
from baselines.registry import SYSTEMS
from baselines.transformers import program_tp as transformers_tp
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
        if (found := _problems(name, options, config, model))
    }
    if problems and (not is_all or len(problems) == len(config.systems)):
        each = [f"{name} cannot run: {found}" for name, found in problems.items()]
        raise ConfigError(f"systems: {'; '.join(each)}")
    systems = {name: o for name, o in config.systems.items() if name not in problems}
    return replace(config, systems=systems), problems


def _problems(name: str, options: SystemOptions, config: Config, model: ModelConfig) -> list[str]:
    if config.testbed.backend == "sim":  # nothing is started, so no package is needed
        from baselines.simulate import SYSTEMS as SIMULATED  # NumPy takes a while

        if name not in SIMULATED:
            return ["the simulator has no model of it"]
        return _misfits(name, options, config, model)
    system = SYSTEMS[name]
    absent = [package for package in system.packages if find_spec(package) is None]
    advice = f": pip install -e '.[{system.extra}]'" if system.extra else ""
    found = [f"the package {package} is not installed{advice}" for package in absent]
    return found + _misfits(name, options, config, model)


def _misfits(name: str, options: SystemOptions, config: Config, model: ModelConfig) -> list[str]:
    """What of the model or the devices a system cannot do."""
    if isinstance(options, PipelineOptions):
        return stages.problems(model, config.devices, options.shares)
    if name == "transformers-tp":
        return transformers_tp.problems(model, config.devices, config.dtype)
    if isinstance(options, LlamacppOptions):
        return gguf_layout.problems(model, options.file_type(config.dtype))
    return []
