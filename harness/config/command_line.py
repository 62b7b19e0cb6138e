"""The command line before Hydra sees it, and Hydra's refusals in one line.

Hydra does not check which options exist in `+KEY=VALUE`, cannot read free text (commas, quotes and
`${` have a meaning), and refuses in several lines. So every word is checked and quoted here.
"""

import contextlib
import functools
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra._internal.utils import get_args_parser  # the parser that `hydra.main` uses
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from baselines.validators import nearest
from harness.config.config import Config, option_names
from harness.config.profiles import LinkFault
from tpi.errors import ConfigError

CONF_DIR = Path(__file__).parents[2] / "conf"
_NO_AXIS = "paper"  # plans of many configurations: `harness/paper/plan.py` reads them
_UNSAFE = "--experimental-rerun"
_PATHS = ("path", "dir", "prompt_file", "results_dir", "sweep_dir", "calibration")
# OmegaConf's refusals of a value, and ours.
_REFUSALS = {
    r"Value (.*) of type .* converted to Integer": "got {}, expected a whole number",
    r"Value (.*) of type .* converted to Float": "got {}, expected a number",
    r"Value (.*) is not a valid bool": "got {}, expected true or false",
    r".* is not a subclass of (\w+)\. value: (.*)": "got {1!r}, expected options ({0})",
    r".* has missing mandatory value": "must be given",
}
_OF_HYDRA = re.compile(r"[+~]*hydra[./=]")
_OF_RANK = re.compile(r"testbed\.(roster|links)\.r\d+\.\w+")
# Not every testbed's page names all of these, so Hydra may have to add them.
_MAY_BE_NEW = re.compile(r"testbed\.")


@dataclass(frozen=True, slots=True)
class CommandLine:
    """Hydra's flags, and overrides that Hydra can read."""

    flags: tuple[str, ...]
    overrides: tuple[str, ...]
    wants_help: bool


def read_command_line(args: Sequence[str]) -> CommandLine:
    """Separate flags from overrides; check and quote the overrides.

    Raises:
        ConfigError: A flag or an option that does not exist; one line.
    """
    errors = io.StringIO()
    parser = get_args_parser()
    try:
        with contextlib.redirect_stderr(errors):
            given = parser.parse_intermixed_args([a for a in args if not _is_unknown(a)])
    except SystemExit as exc:
        if not exc.code:  # --version has answered
            raise
        raise ConfigError(errors.getvalue().strip().rpartition("error: ")[2]) from None
    if unknown := [a for a in args if _is_unknown(a)]:
        known = sorted(f for f in parser.format_usage().replace("]", " ").split() if "--" in f)
        flags = [flag.strip("[") for flag in known if _UNSAFE not in flag]
        raise ConfigError(f"unknown flag {unknown[0]!r}{nearest(unknown[0], flags)}")
    if given.experimental_rerun is not None:
        raise ConfigError(f"{_UNSAFE}: it unpickles a file, which could run anything; leave it out")
    flags = list(args)
    for override in given.overrides:
        flags.remove(override)
    overrides = list(given.overrides)
    if not given.shell_completion:
        folders = [CONF_DIR, *([Path(given.config_dir)] if given.config_dir else [])]
        overrides = readable(overrides, *folders)
    return CommandLine(tuple(flags), tuple(overrides), wants_help=given.help)


def readable(overrides: Sequence[str], *folders: Path) -> list[str]:
    """Overrides as Hydra takes them: known, free text in quotes; raises ConfigError."""
    axes = groups(*folders)
    known = (*axes, *short_names(folders[0] / "config.yaml"), *option_names())
    return [_readable(override, axes, known) for override in overrides]


def groups(*folders: Path) -> dict[str, tuple[str, ...]]:
    """The axes: folder name -> names of the files in it."""
    found: dict[str, set[str]] = {}
    for parent in folders or (CONF_DIR,):
        for folder in parent.iterdir() if parent.is_dir() else ():
            if folder.is_dir() and folder.name != _NO_AXIS:
                names = {file.stem for file in folder.glob("*.yaml")}
                found[folder.name] = found.get(folder.name, set()) | names
    return {name: tuple(sorted(found[name])) for name in sorted(found)}


@functools.cache
def short_names(page: Path = CONF_DIR / "config.yaml") -> tuple[str, ...]:
    """The names at the top of `config.yaml`, which are short for options."""
    names = (str(key) for key in OmegaConf.load(page))
    return tuple(name for name in names if name not in ("defaults", "hydra"))


def quoted(text: str) -> str:
    """Any text, quoted so that Hydra's grammar takes it literally."""
    text = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)  # for OmegaConf: no interpolation
    text = re.sub(r"(\\*)'", r"\1\1\\'", text)  # for Hydra
    return "'" + re.sub(r"(\\+)\Z", r"\1\1", text) + "'"


def explain(exc: Exception, overrides: Sequence[str] = ()) -> str:
    """A refusal of Hydra or OmegaConf, in one line that names the option."""
    message = str(exc).partition("\n")[0]
    if match := re.search(r"Could not (?:load|find) '(.+)/([^/]+)'", message):
        choices = getattr(exc, "options", None) or groups().get(match[1], ())
        return f"{match[1]}: unknown {match[2]!r}{nearest(match[2], choices)}"
    if match := re.match(r"Could not override '(systems\.([\w-]+)\.[\w.]+)'", message):
        return f"{match[1]}: {match[2]} is not among the systems of this run, add it: systems=[...]"
    if match := re.match(r"Ambiguous value for argument '(.*)'", message):
        return f"{match[1]}: several values; write [..] for a list, or add -m for a run of each"
    for override in overrides:
        try:
            OverridesParser.create().parse_overrides([override])
        except HydraException:
            return f"{override}: the value cannot be read; put quotes around it"
    return _of_type(exc if isinstance(exc, OmegaConfBaseException) else exc.__cause__) or message


def refuse_duplicates(overrides: Sequence[str]) -> None:
    """Refuse a system that is named twice, which Hydra would silently run once."""
    value = last_value(overrides, "systems")
    names = re.split(r"[,\s]+", value.strip("[] "))
    if len(set(names)) < len(names):
        raise ConfigError(f"systems: got {value}, a system is named twice")


def refuse_hidden(overrides: Sequence[str], config: Config) -> None:
    """Refuse an option of all devices where the testbed gives every rank its own."""
    testbed = config.testbed
    links = [testbed.links.get(f"r{rank}", {}) for rank in range(config.devices)]
    # An axis as a whole has no effect if every rank has the options that define a link.
    is_link_hidden = all({"delay_ms", "rate_mbps"} <= set(link) for link in links)
    for override in overrides:
        axis, _, option = override.partition("=")[0].partition(".")
        is_hidden = {
            "device": bool(testbed.roster),
            "link": all(option in link for link in links) if option else is_link_hidden,
        }
        if is_hidden.get(axis):
            where = {"device": "roster", "link": "links"}[axis]
            name = f"{axis}.{option}" if option else axis
            raise ConfigError(
                f"{name}: in testbed={testbed.name} every rank has its own, say"
                f" testbed.{where}.r0.{option or 'OPTION'}=... and so on"
            )


def last_value(overrides: Sequence[str], key: str) -> str:
    """The last value of a key; empty if it was not given."""
    values = [o.partition("=")[2].strip() for o in overrides if o.startswith(f"{key}=")]
    return values[-1] if values else ""


def _is_unknown(word: str) -> bool:
    if not word.startswith("-"):
        return False
    with contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(SystemExit):
        return bool(get_args_parser().parse_known_args([word, "job"])[1])
    return False


def _readable(override: str, axes: dict[str, tuple[str, ...]], known: Sequence[str]) -> str:
    given, equals, value = override.partition("=")
    key = given.lstrip("+")
    if _OF_HYDRA.match(override) or (key.partition("@")[0] in axes and "@" in key):
        return override
    if not equals:
        raise ConfigError(f"got {override!r}, expected KEY=VALUE{_hint(key, known)}")
    if key not in known and not _OF_RANK.fullmatch(key):
        raise ConfigError(f"unknown option {given!r}{_hint(key, known)}")
    if key == "workload.prompt" or key.rpartition(".")[2] in _PATHS:
        value = quoted(value)
    return f"++{key}={value}" if _MAY_BE_NEW.match(key) else f"{key}={value}"


def _hint(key: str, known: Sequence[str]) -> str:
    # prompt -> workload.prompt: the last part alone is a likely mistake.
    full = [name for name in known if name.rpartition(".")[2] == key]
    close = f"; did you mean {full[0]}?" if full else nearest(key, known)
    return close or "; python run.py --help lists the options"


def _of_type(exc: BaseException | None) -> str:
    """A wrong type, an unknown key, or a missing value; empty if it is another error."""
    if not isinstance(exc, OmegaConfBaseException):
        return ""
    name, message = str(exc.full_key or "config"), str(exc).partition("\n")[0]
    if exc.object_type is LinkFault and name in message:  # OmegaConf says only the last part
        name = f"link.faults.{name}"
    if isinstance(exc, ConfigKeyError | ConfigAttributeError):
        last = name.rpartition(".")[2]
        names = sorted({option.rpartition(".")[2] for option in option_names()})
        return f"unknown option {name}{nearest(last, names)}"
    for pattern, words in _REFUSALS.items():
        if match := re.match(pattern, message):
            return f"{name}: {words.format(*match.groups())}"
    return f"{name}: {message}"
