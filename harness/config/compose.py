"""From overrides to a checked configuration: Hydra composes `conf/` over the dataclasses.

The dataclasses of `harness.config.config` are the schema at the top of `conf/config.yaml`, so
OmegaConf refuses unknown keys and wrong types. The objects check ranges and choices.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, make_dataclass, replace
from pathlib import Path
from typing import Any, cast

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness.config import help as usage
from harness.config.command_line import (
    CONF_DIR,
    explain,
    groups,
    last_value,
    readable,
    refuse_duplicates,
    refuse_hidden,
    short_names,
)
from harness.config.config import AXES, Config, system_options
from harness.config.profiles import DeviceProfile
from harness.config.sim_options import refuse_ignored
from tpi.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Composed:
    """One configuration; `all_systems` if systems came by `all` and not by name."""

    config: Config
    all_systems: bool


def _schema() -> type:
    """`Config` as Hydra sees it: with unchecked options of systems, and the short names."""
    known = {f.name for f in fields(Config)}
    short = [(n, Any, field(default=MISSING)) for n in short_names() if n not in {*known, *AXES}]
    systems: Any = field(default_factory=dict)
    named = [("systems", dict[str, Any], systems), *short]
    return make_dataclass("CommandLineOptions", named, bases=(Config,))


SCHEMA = _schema()
ConfigStore.instance().store(name="schema", node=SCHEMA)


def compose(overrides: Sequence[str], conf_dir: Path = CONF_DIR) -> Composed:
    """Compose and check one configuration; raises ConfigError, one line."""
    words = readable(overrides, conf_dir)
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir.resolve())):
            tree = hydra_compose("config", overrides=words)
    except (HydraException, OmegaConfBaseException) as exc:
        raise ConfigError(explain(exc, words)) from exc
    return checked(tree, words)


def checked(tree: DictConfig, overrides: Sequence[str]) -> Composed:
    """The configuration that Hydra composed; raises ConfigError, also for options of no effect."""
    given = [override.lstrip("+") for override in overrides]
    refuse_duplicates(given)
    config = config_from(tree)
    refuse_hidden(given, config)
    if config.testbed.backend == "sim":
        refuse_ignored(given)
    return Composed(config, all_systems=last_value(given, "systems") in ("all", "[all]"))


def config_from(raw: Mapping[str, Any] | DictConfig) -> Config:
    """The configuration from a composed tree or plain dictionaries; raises ConfigError."""
    try:
        if not isinstance(raw, DictConfig):
            raw = cast(DictConfig, OmegaConf.merge(OmegaConf.structured(SCHEMA), raw))
        values = {f.name: _object(raw[f.name]) for f in fields(Config)}
        roster = {rank: _profile(rank, own) for rank, own in values["testbed"].roster.items()}
        values["testbed"] = replace(values["testbed"], roster=roster)
    except OmegaConfBaseException as exc:
        raise ConfigError(explain(exc)) from exc
    values["systems"] = {
        name: system_options(name, options) for name, options in values["systems"].items()
    }
    return Config(**values)


def _object(value: Any) -> Any:
    return OmegaConf.to_object(value) if OmegaConf.is_config(value) else value


def _profile(rank: str, given: Any) -> DeviceProfile:
    """One rank's device. OmegaConf 2.3 cannot merge a `dict[str, DeviceProfile]` by itself."""
    where = f"testbed.roster.{rank}"
    try:
        tree = OmegaConf.create({"testbed": {"roster": {rank: DeviceProfile}}})
        OmegaConf.update(tree, where, given)
        profile = OmegaConf.to_object(OmegaConf.select(tree, where))
    except ConfigError as exc:  # says `device`, since the profile does not know whose it is
        raise ConfigError(re.sub(r"^device\.", f"{where}.", str(exc))) from exc
    return cast(DeviceProfile, profile)


def help_text() -> str:
    """What `--help` prints: the options with the defaults that `conf/` gives them."""
    top = OmegaConf.to_container(OmegaConf.load(CONF_DIR / "config.yaml"))
    shortcuts = {str(key): value for key, value in cast(dict[str, object], top).items()}
    return usage.help_text(compose(["systems=all"]).config, groups(), shortcuts)
