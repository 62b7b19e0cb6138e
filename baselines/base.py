"""A system as the harness sees it: one `System` value holds everything that is special about it.

A system is a folder of `baselines/`, or a package of its own, with a module that makes the value.
No other code depends on which system it is. Modules that make systems import neither torch nor
NumPy, since every command line asks the registry; methods import what needs them.
"""
# ruff: noqa: ARG002 - subclasses use the arguments

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from baselines.cost_inputs import CostInputs, Prediction
from baselines.options import SystemOptions
from baselines.weight_formats import WeightFormat
from tpi.errors import ConfigError
from tpi.model_config import ModelConfig
from tpi.weights.shard import make_shard_plan

Opts = TypeVar("Opts", bound=SystemOptions)


@dataclass(frozen=True)
class System(Generic[Opts]):
    """A system that is compared: a program that obeys the contract of `tpi node`.

    Attributes:
        name: What `systems=` calls it.
        options: Class of its options.
        program: Arguments of the device's Python that start it; the path of its spec is appended.
        simulator: `MODULE:FUNCTION` of its simulated schedule; empty if it has none.
        writer: Module that writes the weights it reads.
        packages: Python packages that must be there.
        distributions: Names under which an extra installs them; their versions decide its numbers.
        extra: The extra of this project that installs them; empty if they come with it.
        distributed: Whether it takes all devices; else one.
        order: Its place in lists, the smallest first; those of other packages come last.
    """

    name: str
    options: type[Opts]
    program: tuple[str, ...]
    simulator: str = ""
    writer: str = "tpi.weights.split"
    packages: tuple[str, ...] = ("torch",)
    extra: str = ""
    distributions: tuple[str, ...] = ()
    distributed: bool = False
    order: int = 1000

    def world_size(self, devices: int) -> int:
        """How many of the devices it takes."""
        return devices if self.distributed else 1

    def predict(self, inputs: CostInputs, options: Opts) -> Prediction:
        """Predict what one start and one request take.

        Raises:
            ResourceError: A memory budget that cannot work; the message has the least that would.
        """
        raise ConfigError(
            f"system {self.name}: {type(self).__name__} does not say what it needs: it has no"
            " predict"
        )

    def problems(self, model: ModelConfig, devices: int, dtype: str, options: Opts) -> list[str]:
        """The reasons why it cannot serve this model on so many devices."""
        return []

    def weight_format(
        self, model: ModelConfig, devices: int, dtype: str, options: Opts
    ) -> WeightFormat:
        """The form of the weights that it reads: by default shards, one for each device."""
        return WeightFormat(
            "shards", make_shard_plan(model, self.world_size(devices), options.split)
        )

    def is_exact(self, options: Opts, dtype: str) -> bool:
        """Whether tokens must equal the reference's: nothing is rounded to 16 bit or less."""
        compute = options.compute(dtype, max_tokens=1)
        return compute.dtype == compute.wire_dtype == "float32"

    def reduced(self, options: Opts, world_size: int, num_layers: int) -> tuple[Opts, int]:
        """Options and devices for the same shape of model, cut to so many layers."""
        return options, world_size


AnySystem = System[Any]
