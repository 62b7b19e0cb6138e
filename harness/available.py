"""Which systems can run here at all; nothing is imported to find out."""

from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec

from harness.config import Config
from results.schema import RunRecord
from tpi.errors import ConfigError

_PACKAGES = {"tpi": ("torch",), "transformers": ("torch", "transformers")}


def split_available(config: Config, *, is_all: bool) -> tuple[Config, list[RunRecord]]:
    """The systems that can run, and a row for each that cannot.

    Raises:
        ConfigError: One that was asked for by name cannot run, or none can.
    """
    missing = {name: reason for name in config.systems if (reason := _why_not(name))}
    if missing and (not is_all or len(missing) == len(config.systems)):
        name, reason = next(iter(missing.items()))
        raise ConfigError(f"systems: {name} cannot run here: {reason}")
    systems = {name: o for name, o in config.systems.items() if name not in missing}
    return replace(config, systems=systems), _rows(missing)


def _why_not(name: str) -> str:
    absent = [package for package in _PACKAGES[name] if find_spec(package) is None]
    return f"the package {absent[0]} is not installed" if absent else ""


def _rows(missing: Mapping[str, str]) -> list[RunRecord]:
    # Rows of the table only: what never ran has no record.
    return [RunRecord("", name, "unavailable", reason) for name, reason in missing.items()]
