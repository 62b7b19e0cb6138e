"""What a user may ask for: one dataclass per axis, every value checked when it is made.

`config_from` builds a `Config` from plain dictionaries (what `conf/` and the command line compose
to). An error names the option as it is written on the command line, what was given, and what is
expected. Values that exist in more than one unit or spelling are normalised here (`4GiB` becomes
bytes). Read `Config` first.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from baselines.options import SystemOptions
from baselines.registry import SYSTEMS
from baselines.validators import (
    check_choice,
    check_count,
    check_flag,
    check_number,
    check_size,
    check_text,
    make_options,
    nearest,
)
from harness.config.profiles import DeviceProfile, LinkChoice, TestbedChoice, links_of, profiles_of
from testbed.links.link import LinkSpec
from tpi.errors import ConfigError
from tpi.program.spec import DTYPES

FOLDER = "folder"
STORAGE_DTYPES = ("auto", "float32", "float16", "bfloat16")


@dataclass
class ModelChoice:
    """Which model: a preset's shape, or `folder` with the path of a checkpoint."""

    name: str = "tiny"
    path: str | None = None

    def __post_init__(self) -> None:
        check_text("model.name", self.name)
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
        distinct_layers: Layers that are stored; `auto` is as many as `max_bytes` holds.
    """

    source: str = "auto"
    dir: str = "weights"
    seed: int = 0
    dtype: str = "auto"
    distinct_layers: int | str = "auto"
    max_bytes: int = 16 << 30

    def __post_init__(self) -> None:
        check_choice("weights.source", self.source, ("auto", "folder", "synthetic"))
        check_text("weights.dir", self.dir)
        check_count("weights.seed", self.seed, low=0, high=2**31)
        check_choice("weights.dtype", self.dtype, STORAGE_DTYPES)
        if self.distinct_layers != "auto":
            check_count("weights.distinct_layers", self.distinct_layers, or_="auto")
        self.max_bytes = check_size("weights.max_bytes", self.max_bytes)


@dataclass
class Workload:
    """One request: its prompt and how many tokens to make."""

    prompt: str | None = None
    prompt_file: str | None = None
    prompt_tokens: int = 32
    seed: int = 0
    new_tokens: int = 32

    def __post_init__(self) -> None:
        if self.prompt is not None and self.prompt_file is not None:
            raise ConfigError(
                "workload.prompt and workload.prompt_file exclude each other: give one"
            )
        if self.prompt is not None and not str(self.prompt).strip():
            raise ConfigError("workload.prompt: the text is empty")
        if self.prompt_file is not None and not Path(self.prompt_file).is_file():
            raise ConfigError(f"workload.prompt_file: no file {self.prompt_file!r}")
        check_count("workload.prompt_tokens", self.prompt_tokens)
        check_count("workload.seed", self.seed, low=0, high=2**31)
        check_count("workload.new_tokens", self.new_tokens)

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
    devices: int = 4
    dtype: str = "float32"
    repeats: int = 3
    max_minutes: float = 30.0
    results_dir: str = "results/runs"
    force: bool = False
    trace: bool = False
    allow_concurrent: bool = False

    def __post_init__(self) -> None:
        if not self.systems:
            raise ConfigError(f"systems: none given, expected some of {', '.join(SYSTEMS)}")
        check_count("devices", self.devices, high=1024)
        check_choice("dtype", self.dtype, DTYPES)
        check_count("repeats", self.repeats, high=1000)
        self.max_minutes = check_number("max_minutes", self.max_minutes, low=0.01, high=1e6)
        check_text("results_dir", self.results_dir)
        check_flag("force", self.force)
        check_flag("trace", self.trace)
        check_flag("allow_concurrent", self.allow_concurrent)
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
            shares = getattr(options, "shares", None)
            if shares and len(shares) != self.devices:
                raise ConfigError(
                    f"shares: got {len(shares)} numbers, expected devices={self.devices} of them"
                )

    @property
    def profiles(self) -> list[DeviceProfile]:
        """The profile of every device."""
        return profiles_of(self.testbed, self.device, self.devices)

    @property
    def links(self) -> list[LinkSpec]:
        """The link of every device, undilated."""
        return links_of(self.testbed, self.link, self.devices)

    def _refuse_limits(self, profiles: list[DeviceProfile], links: list[LinkSpec]) -> None:
        """Plain processes cannot be limited, nor their links emulated."""
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


_AXES = {
    "model": ModelChoice,
    "weights": WeightsChoice,
    "workload": Workload,
    "device": DeviceProfile,
    "link": LinkChoice,
    "testbed": TestbedChoice,
}


def config_from(raw: Mapping[str, Any]) -> Config:
    """Check plain dictionaries and make the configuration of them.

    Raises:
        ConfigError: An unknown option or an impossible value; one line.
    """
    values = dict(raw)
    for name, axis in _AXES.items():
        values[name] = make_options(axis, values.get(name, {}), name)
    systems = values.get("systems") or {}
    for name in systems:
        if name not in SYSTEMS:
            raise ConfigError(f"systems: unknown system {name!r}{nearest(name, SYSTEMS)}")
    values["systems"] = {
        name: make_options(SYSTEMS[name].options, options, f"systems.{name}")
        for name, options in systems.items()
    }
    config: Config = make_options(Config, values, "")
    return config


def option_names() -> tuple[str, ...]:
    """Every option there is, by its full name."""
    names = [f.name for f in fields(Config) if f.name not in _AXES and f.name != "systems"]
    for axis, cls in [*_AXES.items(), *((f"systems.{n}", s.options) for n, s in SYSTEMS.items())]:
        names += [f"{axis}.{f.name}" for f in fields(cls)]
    return tuple(names)
