"""What a user may ask for: one dataclass per axis, every value checked when it is made.

`config_from` builds a `Config` from plain dictionaries (what `conf/` and the command line compose
to). An error names the option as it is written on the command line, what was given, and what is
expected. Values that exist in more than one unit or spelling are normalised here (`4GiB` becomes
bytes). Read `Config` first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from tpi.errors import ConfigError
from tpi.spec import ALLREDUCES, DTYPES, WIRE_DTYPES
from tpi.units import parse_bytes

FOLDER = "folder"
STORAGE_DTYPES = ("auto", "float32", "float16", "bfloat16")
_MAX_COUNT = 1_000_000


@dataclass
class ModelChoice:
    """Which model: a preset's shape, or `folder` with the path of a checkpoint."""

    name: str = "tiny"
    path: str | None = None

    def __post_init__(self) -> None:
        _text("model.name", self.name)
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
        _choice("weights.source", self.source, ("auto", "folder", "synthetic"))
        _text("weights.dir", self.dir)
        _count("weights.seed", self.seed, low=0, high=2**31)
        _choice("weights.dtype", self.dtype, STORAGE_DTYPES)
        if self.distinct_layers != "auto":
            _count("weights.distinct_layers", self.distinct_layers, or_="auto")
        self.max_bytes = _size("weights.max_bytes", self.max_bytes)


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
        _count("workload.prompt_tokens", self.prompt_tokens)
        _count("workload.seed", self.seed, low=0, high=2**31)
        _count("workload.new_tokens", self.new_tokens)

    @property
    def has_text(self) -> bool:
        """Whether the prompt is a text, which needs a tokenizer."""
        return self.prompt is not None or self.prompt_file is not None


@dataclass
class DeviceProfile:
    """What every device of the testbed is like."""

    name: str = "local"
    threads: int = 1

    def __post_init__(self) -> None:
        _text("device.name", self.name)
        _count("threads", self.threads, high=1024)


@dataclass
class TestbedChoice:
    """What makes the devices; every deadline is multiplied by `time_scale`."""

    __test__ = False  # not a test, whatever its name looks like to pytest

    name: str = "local"
    backend: str = "local"
    time_scale: float = 1.0

    def __post_init__(self) -> None:
        _choice("testbed.backend", self.backend, ("local",))
        self.time_scale = _number("testbed.time_scale", self.time_scale, low=0.01, high=1000)


@dataclass
class TpiOptions:
    """Options of TPI-LLM."""

    window: int | str = 2
    memory_budget: int | None = None
    allreduce: str = "star"
    wire_dtype: str = "float32"
    shares: list[float] | None = None
    prefill_chunk: int = 512

    def __post_init__(self) -> None:
        if self.window != "all":
            _count("window", self.window, or_="all")
        if self.memory_budget is not None:
            self.memory_budget = _size("memory_budget", self.memory_budget)
        _choice("allreduce", self.allreduce, ALLREDUCES)
        _choice("wire_dtype", self.wire_dtype, WIRE_DTYPES)
        self.shares = None if self.shares is None else _shares(self.shares)
        _count("systems.tpi.prefill_chunk", self.prefill_chunk)


@dataclass
class TransformersOptions:
    """Transformers has no options of its own."""


SystemOptions = TpiOptions | TransformersOptions
SYSTEMS: dict[str, type[TpiOptions] | type[TransformersOptions]] = {
    "tpi": TpiOptions,
    "transformers": TransformersOptions,
}


@dataclass
class Config:
    """Everything `python run.py` was asked for."""

    model: ModelChoice = field(default_factory=ModelChoice)
    weights: WeightsChoice = field(default_factory=WeightsChoice)
    workload: Workload = field(default_factory=Workload)
    device: DeviceProfile = field(default_factory=DeviceProfile)
    testbed: TestbedChoice = field(default_factory=TestbedChoice)
    systems: dict[str, SystemOptions] = field(default_factory=dict)
    devices: int = 4
    dtype: str = "float32"
    repeats: int = 3
    max_minutes: float = 30.0
    results_dir: str = "results/runs"
    force: bool = False

    def __post_init__(self) -> None:
        if not self.systems:
            raise ConfigError(f"systems: none given, expected some of {', '.join(SYSTEMS)}")
        _count("devices", self.devices, high=1024)
        _choice("dtype", self.dtype, DTYPES)
        _count("repeats", self.repeats, high=1000)
        self.max_minutes = _number("max_minutes", self.max_minutes, low=0.01, high=1e6)
        _text("results_dir", self.results_dir)
        if not isinstance(self.force, bool):
            raise ConfigError(f"force: got {self.force!r}, expected true or false")
        tpi = self.systems.get("tpi")
        if isinstance(tpi, TpiOptions) and tpi.shares and len(tpi.shares) != self.devices:
            raise ConfigError(
                f"shares: got {len(tpi.shares)} numbers, expected devices={self.devices} of them"
            )


_AXES = {
    "model": ModelChoice,
    "weights": WeightsChoice,
    "workload": Workload,
    "device": DeviceProfile,
    "testbed": TestbedChoice,
}


def config_from(raw: Mapping[str, Any]) -> Config:
    """Check plain dictionaries and make the configuration of them.

    Raises:
        ConfigError: An unknown option or an impossible value; one line.
    """
    values = dict(raw)
    for name, axis in _AXES.items():
        values[name] = _build(axis, values.get(name, {}), f"{name}.")
    systems = values.get("systems") or {}
    for name in systems:
        if name not in SYSTEMS:
            raise ConfigError(f"systems: unknown system {name!r}{nearest(name, SYSTEMS)}")
    values["systems"] = {
        name: _build(SYSTEMS[name], options, f"systems.{name}.")
        for name, options in systems.items()
    }
    config: Config = _build(Config, values, "")
    return config


def option_names() -> tuple[str, ...]:
    """Every option there is, by its full name."""
    names = [f.name for f in fields(Config) if f.name not in _AXES and f.name != "systems"]
    for axis, cls in [*_AXES.items(), *((f"systems.{s}", cls) for s, cls in SYSTEMS.items())]:
        names += [f"{axis}.{f.name}" for f in fields(cls)]
    return tuple(names)


def nearest(word: str, known: Sequence[str] | Mapping[str, object]) -> str:
    """`; did you mean X?` where something is close, else the choices, else nothing."""
    close = get_close_matches(word, list(known), n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; there are: {', '.join(known)}" if len(known) <= 12 else ""


def _build(cls: Any, raw: Any, prefix: str) -> Any:
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{prefix.rstrip('.')}: got {raw!r}, expected options")
    known = [f.name for f in fields(cls)]
    for key in raw:
        if key not in known:
            raise ConfigError(f"unknown option {prefix}{key}{nearest(key, known)}")
    return cls(**raw)


def _count(name: str, value: object, low: int = 1, high: int = _MAX_COUNT, or_: str = "") -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        also = f", or {or_}" if or_ else ""
        raise ConfigError(
            f"{name}: got {value!r}, expected a whole number from {low} to {high}{also}"
        )


def _number(name: str, value: object, low: float, high: float) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
        raise ConfigError(f"{name}: got {value!r}, expected a number from {low:g} to {high:g}")
    return float(value)


def _text(name: str, value: object) -> None:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ConfigError(f"{name}: got {value!r}, expected a name")


def _choice(name: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ConfigError(
            f"{name}: got {value!r}, expected {' | '.join(choices)}"
            + (
                nearest(value, choices)
                if isinstance(value, str) and _is_close(value, choices)
                else ""
            )
        )


def _is_close(value: str, choices: Sequence[str]) -> bool:
    return bool(get_close_matches(value, choices, n=1))


def _size(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ConfigError(f"{name}: got {value!r}, expected a size such as 4GiB or 600MiB")
    return parse_bytes(value, name)


def _shares(value: object) -> list[float]:
    if not isinstance(value, list) or not value:
        raise ConfigError(f"shares: got {value!r}, expected one number per device, as [2,1,1]")
    shares = [_number("shares", v, low=0, high=1e6) for v in value]
    if not any(shares):
        raise ConfigError(f"shares: got {value!r}, expected at least one above 0")
    return shares
