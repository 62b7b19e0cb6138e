"""From the command line to configurations: the only module that knows Hydra.

Hydra composes `conf/` and the overrides. What it would answer with several lines and exit status 1
is checked before it sees it: an argument that is no KEY=VALUE, an unknown key or choice, a system
named twice. Free text (prompts, paths) is taken out first and put back afterwards, since commas,
quotes, `=` and `${` mean something to Hydra. Read `compose` first.
"""

import functools
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from baselines.validators import nearest
from harness.config import help as usage
from harness.config.config import Config, config_from, option_names
from harness.config.sim_options import refuse_ignored
from tpi.errors import ConfigError

CONF_DIR = Path(__file__).parents[2] / "conf"
_SWEEP_FLAGS = ("-m", "--multirun")
_NO_AXIS = "paper"  # plans of many configurations: `harness/paper/plan.py` reads them
_PATHS = ("path", "dir", "prompt_file", "results_dir", "calibration")
# Options of single ranks; not every testbed names them, so Hydra may have to add them.
_OF_RANK = re.compile(r"testbed\.(roster|links)\.r\d+\.\w+")
# Not every testbed's page names all of these, so Hydra may have to add them.
_MAY_BE_NEW = re.compile(r"testbed\.")


@dataclass(frozen=True, slots=True)
class Composed:
    """One configuration; `all_systems` where systems came by `all` and not by name."""

    config: Config
    all_systems: bool


def compose_all(args: Sequence[str], conf_dir: Path = CONF_DIR) -> list[Composed]:
    """Every configuration that the command line asks for: one, or with `-m` one per combination.

    Raises:
        ConfigError: Anything that is wrong with it; one line, before anything has started.
    """
    overrides = [a for a in args if a not in _SWEEP_FLAGS]
    if len(overrides) == len(args):
        return [compose(overrides, conf_dir)]
    text, plain = _split_free_text(overrides)
    return [compose([*text, *combination], conf_dir) for combination in _sweep(plain)]


def compose(overrides: Sequence[str], conf_dir: Path = CONF_DIR) -> Composed:
    """Compose and check one configuration."""
    for override in overrides:
        _check(override, conf_dir)
    text, plain = _split_free_text(overrides)
    raw = _with_hydra([f"++{o}" if _MAY_BE_NEW.match(o) else o for o in plain], conf_dir)
    for override in text:
        key, _, value = override.partition("=")
        _put(raw, key, value)
    known = {f.name for f in fields(Config)}
    # What is left over are the short names (window=...), which are interpolated where they belong.
    config = config_from({k: v for k, v in raw.items() if k in known})
    _refuse_hidden(plain, asdict(config))
    if config.testbed.backend == "sim":
        refuse_ignored(overrides)
    return Composed(config, all_systems=_last_value(overrides, "systems") in ("all", "[all]"))


def groups(conf_dir: Path = CONF_DIR) -> dict[str, tuple[str, ...]]:
    """The axes: folder name -> names of the files in it."""
    return {
        folder.name: tuple(sorted(f.name.removesuffix(".yaml") for f in folder.glob("*.yaml")))
        for folder in sorted(conf_dir.iterdir())
        if folder.is_dir() and folder.name != _NO_AXIS
    }


@functools.cache  # asked for every override of every configuration
def short_names(conf_dir: Path = CONF_DIR) -> tuple[str, ...]:
    """Names at the top of `config.yaml`: the short way to write an option."""
    return tuple(str(k) for k in OmegaConf.load(conf_dir / "config.yaml") if k != "defaults")


def _check(override: str, conf_dir: Path) -> None:
    if override.startswith("-"):
        raise ConfigError(f"unknown flag {override!r}; there are: --help, -m")
    key, equals, value = override.partition("=")
    axes = groups(conf_dir)
    known = (*axes, *short_names(conf_dir), *option_names())
    if not equals:
        raise ConfigError(f"got {override!r}, expected KEY=VALUE{_hint(key, known)}")
    if key not in known and not _OF_RANK.fullmatch(key):
        raise ConfigError(f"unknown option {key!r}{_hint(key, known)}")
    if key in axes:
        names = re.split(r"[,\s]+", value.strip("[] "))
        # A bad name in a sweep is found when its combination is composed.
        for name in names if key == "systems" else [value]:
            if name not in axes[key]:
                raise ConfigError(f"{key}: unknown {name!r}{nearest(name, axes[key])}")
        if len(set(names)) < len(names):
            raise ConfigError(f"systems: got {value}, a system is named twice")


def _refuse_hidden(overrides: Sequence[str], raw: Mapping[str, Any]) -> None:
    """Refuse an option of all devices where the testbed gives every rank its own."""
    testbed = raw["testbed"]
    links = [testbed["links"].get(f"r{rank}", {}) for rank in range(raw["devices"])]
    # An axis as a whole is without effect where every rank has all that tells it apart.
    is_link_hidden = all({"delay_ms", "rate_mbps"} <= set(link) for link in links)
    for override in overrides:
        axis, _, option = override.partition("=")[0].partition(".")
        is_hidden = {
            "device": bool(testbed["roster"]),
            "link": all(option in link for link in links) if option else is_link_hidden,
        }
        if is_hidden.get(axis):
            where = {"device": "roster", "link": "links"}[axis]
            name = f"{axis}.{option}" if option else axis
            raise ConfigError(
                f"{name}: in testbed={testbed['name']} every rank has its own, say"
                f" testbed.{where}.r0.{option or 'OPTION'}=... and so on"
            )


def _hint(key: str, known: Sequence[str]) -> str:
    # prompt -> workload.prompt: the last part alone is a likely slip.
    full = [name for name in known if name.rpartition(".")[2] == key]
    close = f"; did you mean {full[0]}?" if full else nearest(key, known)
    return close or "; python run.py --help lists the options"


def _is_free_text(override: str) -> bool:
    key = override.partition("=")[0]
    last = key.rpartition(".")[2]
    return key == "workload.prompt" or last in _PATHS


def _split_free_text(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    text = [o for o in overrides if _is_free_text(o)]
    return text, [o for o in overrides if not _is_free_text(o)]


def _with_hydra(overrides: list[str], conf_dir: Path) -> dict[str, Any]:
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir.resolve())):
            composed = hydra_compose("config", overrides=overrides)
        raw = OmegaConf.to_container(composed, resolve=True)
    except (HydraException, OmegaConfBaseException, ValueError) as exc:
        raise ConfigError(_one_line(exc, overrides)) from exc
    if not isinstance(raw, dict):
        raise ConfigError(f"{conf_dir}/config.yaml: not a mapping")
    return {str(k): v for k, v in raw.items()}


def _one_line(exc: Exception, overrides: Sequence[str]) -> str:
    message = str(exc).partition("\n")[0]
    if match := re.match(r"Could not override '(systems\.([\w-]+)\.[\w.]+)'", message):
        return f"{match[1]}: {match[2]} is not among the systems of this run, add it: systems=[...]"
    if match := re.match(r"Ambiguous value for argument '(.*)'", message):
        return f"{match[1]}: several values; write [..] for a list, or add -m for a run of each"
    for override in overrides:
        try:
            OverridesParser.create().parse_overrides([override])
        except HydraException:
            return f"{override}: the value cannot be read; put quotes around it"
    return message


def _sweep(overrides: Sequence[str]) -> list[tuple[str, ...]]:
    choices = []
    try:
        for override in OverridesParser.create().parse_overrides(list(overrides)):
            if override.is_sweep_override():
                key = override.get_key_element()
                choices.append([f"{key}={value}" for value in override.sweep_string_iterator()])
            else:
                choices.append([str(override.input_line)])
    except HydraException as exc:
        raise ConfigError(_one_line(exc, overrides)) from exc
    return list(itertools.product(*choices))


def _put(raw: dict[str, Any], key: str, value: str) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        raw = raw.setdefault(parent, {})
    raw[last] = value


def _last_value(overrides: Sequence[str], key: str) -> str:
    values = [o.partition("=")[2].strip() for o in overrides if o.startswith(f"{key}=")]
    return values[-1] if values else ""


def help_text(conf_dir: Path = CONF_DIR) -> str:
    """What `--help` prints: the options with the defaults that `conf/` gives them."""
    top = OmegaConf.to_container(OmegaConf.load(conf_dir / "config.yaml"))
    shortcuts = {str(k): v for k, v in top.items()} if isinstance(top, dict) else {}
    return usage.help_text(compose(["systems=all"], conf_dir).config, groups(conf_dir), shortcuts)
