"""Checks of single values that a user gave.

An error is one line: the option as it is written on the command line, what was given, and what is
expected. A check returns the value in its one form (`4GiB` becomes bytes). It can stand in the
annotation of a dataclass's field, where `check_fields` applies it.
"""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, get_type_hints

from tpi.errors import ConfigError
from tpi.units import format_bytes, parse_bytes

_MAX_COUNT = 1_000_000


def check_fields(config: Any, prefix: str = "") -> None:
    """Apply the checks in the annotations of a dataclass; None, where allowed, is not checked."""
    for name, hint in get_type_hints(type(config), include_extras=True).items():
        for check in getattr(hint, "__metadata__", ()):
            value = getattr(config, name)
            if value is not None:
                setattr(config, name, check(prefix + name, value))


def check_count(
    name: str, value: object, low: int = 1, high: int = _MAX_COUNT, or_: str = ""
) -> object:
    """Refuse all but a whole number from `low` to `high`, or the word `or_`."""
    if or_ and value == or_:
        return value
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        also = f", or {or_}" if or_ else ""
        raise ConfigError(
            f"{name}: got {value!r}, expected a whole number from {low} to {high}{also}"
        )
    return value


def check_number(name: str, value: object, low: float, high: float) -> float:
    """Refuse all but a number from `low` to `high`."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
        raise ConfigError(f"{name}: got {value!r}, expected a number from {low:g} to {high:g}")
    return float(value)


def check_text(name: str, value: object) -> object:
    """Refuse all but a text of at least one character."""
    if not isinstance(value, str) or not value or "\0" in value:
        raise ConfigError(f"{name}: got {value!r}, expected a name")
    return value


def check_flag(name: str, value: object) -> object:
    """Refuse all but true and false."""
    if not isinstance(value, bool):
        raise ConfigError(f"{name}: got {value!r}, expected true or false")
    return value


def check_choice(name: str, value: object, choices: Sequence[str]) -> object:
    """Refuse all but one of `choices`."""
    if value not in choices:
        near = isinstance(value, str) and get_close_matches(value, choices, n=1)
        raise ConfigError(
            f"{name}: got {value!r}, expected {' | '.join(choices)}"
            + (nearest(str(value), choices) if near else "")
        )
    return value


def check_size(name: str, value: object, low: int = 1, high: int = 1 << 62) -> int:
    """Refuse all but a size from `low` to `high` bytes; returns bytes."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ConfigError(f"{name}: got {value!r}, expected a size such as 4GiB or 600MiB")
    num_bytes = parse_bytes(value, name)
    if not low <= num_bytes <= high:
        raise ConfigError(
            f"{name}: got {value!r}, expected {format_bytes(low)} to {format_bytes(high)}"
        )
    return num_bytes


def check_shares(name: str, value: object) -> list[float]:
    """Refuse all but a list of numbers of which one is above 0."""
    if not isinstance(value, list) or not value:
        raise ConfigError(f"{name}: got {value!r}, expected one number per device, as [2,1,1]")
    shares = [check_number(name, v, low=0, high=1e6) for v in value]
    if not any(shares):
        raise ConfigError(f"{name}: got {value!r}, expected at least one above 0")
    return shares


def nearest(word: str, known: Sequence[str] | Mapping[str, object]) -> str:
    """`; did you mean X?` where something is close, else the choices, else nothing."""
    close = get_close_matches(word, list(known), n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; there are: {', '.join(known)}" if len(known) <= 12 else ""
