"""The options of a run: one dataclass per axis, whose values are checked when it is made.

They are also the schema that Hydra composes `conf/` over (`harness.config.compose`); `--help`
describes them. Checks of single values stand in annotations. Sizes are texts or bytes before
`__post_init__`, and bytes after it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from baselines.options import SystemOptions
from baselines.registry import all_systems, find_system, system_names
from baselines.validators import (
    check_count,
    check_fields,
    check_number,
    check_size,
    nearest,
)
from harness.config.profiles import (
    DeviceProfile,
    LinkChoice,
    Name,
    Size,
    TestbedChoice,
    one_of,
)
from testbed.links.link import LinkSpec
from tpi.errors import ConfigError
from tpi.model_config import DTYPES
from tpi.options import COMPUTE_DTYPES

FOLDER = "folder"
STORAGE_DTYPES = ("auto", *DTYPES)
Count = Annotated[int, check_count]
Seed = Annotated[int, partial(check_count, low=0, high=2**31)]


@dataclass
class ModelChoice:
    """Which model: a preset's shape, or `folder` with the path of a checkpoint."""

    name: Name = "tiny"
    path: str | None = None

    def __post_init__(self) -> None:
        check_fields(self, "model.")
        if self.name == FOLDER and not self.path:
            raise ConfigError("model=folder needs model.path=DIR, a folder with config.json")
        if self.path is not None and self.name != FOLDER:
            raise ConfigError(
                f"model.path: got {self.path!r} with model={self.name}, say model=folder"
            )
        if self.path is not None and not Path(self.path).is_dir():
            raise ConfigError(f"model.path: no folder {self.path!r}")


@dataclass
class WeightsChoice:
    """Where weights come from and how they are stored.

    Attributes:
        source: `auto` takes a folder's own weights and makes synthetic ones otherwise.
        dtype: Storage dtype; `auto` is the checkpoint's, or the preset's.
        distinct_layers: `auto` is as many as `max_bytes` holds.
    """

    source: Annotated[str, one_of("auto", "folder", "synthetic")] = "auto"
    dir: Name = "weights"
    seed: Seed = 0
    dtype: Annotated[str, one_of(*STORAGE_DTYPES)] = "auto"
    distinct_layers: Annotated[int | str, partial(check_count, or_="auto")] = "auto"
    max_bytes: Annotated[Size, check_size] = 16 << 30

    def __post_init__(self) -> None:
        check_fields(self, "weights.")


@dataclass
class Workload:
    """One request: its prompt and how many tokens to make."""

    prompt: str | None = None
    prompt_file: str | None = None
    prompt_tokens: Count = 32
    seed: Seed = 0
    new_tokens: Count = 32

    def __post_init__(self) -> None:
        if self.prompt is not None and self.prompt_file is not None:
            raise ConfigError(
                "workload.prompt and workload.prompt_file exclude each other: give one"
            )
        if self.prompt is not None and not str(self.prompt).strip():
            raise ConfigError("workload.prompt: the text is empty")
        if self.prompt_file is not None and not Path(self.prompt_file).is_file():
            raise ConfigError(f"workload.prompt_file: no file {self.prompt_file!r}")
        check_fields(self, "workload.")

    @property
    def has_text(self) -> bool:
        """Whether the prompt is a text, which needs a tokenizer."""
        return self.prompt is not None or self.prompt_file is not None


@dataclass
class Config:
    """Everything `python run.py` was asked for."""

    model: ModelChoice = field(default_factory=ModelChoice)
    weights: WeightsChoice = field(default_factory=WeightsChoice)
    workload: Workload = field(default_factory=Workload)
    device: DeviceProfile = field(default_factory=DeviceProfile)
    link: LinkChoice = field(default_factory=LinkChoice)
    testbed: TestbedChoice = field(default_factory=TestbedChoice)
    systems: dict[str, SystemOptions] = field(default_factory=dict)
    devices: Annotated[int, partial(check_count, high=1024)] = 4
    dtype: Annotated[str, one_of(*COMPUTE_DTYPES)] = "float32"
    repeats: Annotated[int, partial(check_count, high=1000)] = 3
    max_minutes: Annotated[float, partial(check_number, low=0.01, high=1e6)] = 30.0
    results_dir: Name = "results/runs"
    force: bool = False
    trace: bool = False
    allow_concurrent: bool = False

    def __post_init__(self) -> None:
        if not self.systems:
            raise ConfigError(f"systems: none given, expected some of {', '.join(system_names())}")
        check_fields(self)
        profiles, links = self.profiles, self.links
        if self.testbed.backend == "local":
            self._refuse_limits(profiles, links)
        if self.testbed.backend == "sim" and self.link.faults:
            raise ConfigError("link.faults: the simulator has none; leave them out")
        for fault in self.link.faults:
            if fault.device >= self.devices:
                raise ConfigError(
                    f"link.faults: device {fault.device}, there are devices={self.devices}"
                )
        for options in self.systems.values():
            if options.split and len(options.split) != self.devices:
                raise ConfigError(
                    f"shares: got {len(options.split)} numbers,"
                    f" expected devices={self.devices} of them"
                )

    @property
    def profiles(self) -> list[DeviceProfile]:
        """The profile of every device; raises ConfigError if the testbed has fewer."""
        roster = self.testbed.roster
        if roster and self.devices > len(roster):
            raise ConfigError(
                f"devices: got {self.devices}, the testbed {self.testbed.name} has {len(roster)}"
            )
        return list(roster.values())[: self.devices] if roster else [self.device] * self.devices

    @property
    def links(self) -> list[LinkSpec]:
        """The link of every device, undilated; raises ConfigError."""
        return [self._link(f"r{rank}") for rank in range(self.devices)]

    def _link(self, rank: str) -> LinkSpec:
        where, changes = f"testbed.links.{rank}.", self.testbed.links.get(rank, {})
        known = [name for name in _names(LinkChoice) if name not in ("name", "backend", "faults")]
        for key in changes:
            if key not in known:
                raise ConfigError(f"unknown option {where}{key}{nearest(key, known)}")
        try:
            return replace(self.link, faults=[], **changes).spec
        except ConfigError as exc:
            raise ConfigError(re.sub(r"^link\.", where, str(exc))) from exc

    def _refuse_limits(self, profiles: list[DeviceProfile], links: list[LinkSpec]) -> None:
        """Refuse limits of plain processes and emulated links between them."""
        found = [f"device.{name}" for profile in profiles for name in profile.limited]
        if self.testbed.dilation not in ("auto", 1):
            found.append("testbed.dilation")
        if any(link != LinkChoice().spec for link in links) or self.link.faults:
            found.append(f"link={self.link.name}")
        if found:
            raise ConfigError(
                f"{found[0]}: plain processes cannot be limited; leave it out, take"
                " testbed=docker, or bound what a system takes by its own option (memory_budget,"
                " systems.accelerate.max_memory)"
            )


AXES = {
    "model": ModelChoice,
    "weights": WeightsChoice,
    "workload": Workload,
    "device": DeviceProfile,
    "link": LinkChoice,
    "testbed": TestbedChoice,
}


def system_options(system: str, given: Mapping[str, Any]) -> SystemOptions:
    """The options of one system, checked; raises ConfigError if unknown or impossible."""
    options: type[SystemOptions] = find_system(system).options
    known = options.__struct_fields__
    for name in given:
        if name not in known:
            raise ConfigError(f"unknown option systems.{system}.{name}{nearest(name, known)}")
    return options(**given)


def option_names() -> tuple[str, ...]:
    """Every option there is, by its full name."""
    names = [name for name in _names(Config) if name not in (*AXES, "systems")]
    for axis, cls in AXES.items():
        names += [f"{axis}.{name}" for name in _names(cls)]
    for system in all_systems():
        names += [f"systems.{system.name}.{n}" for n in system.options.__struct_fields__]
    return tuple(names)


def _names(cls: Any) -> list[str]:
    return [f.name for f in fields(cls)]
