"""Checks of single values that a user gave: each raises one line that names the option.

An error says what the option is called on the command line, what was given and what is expected.
Values that exist in more than one spelling are returned in one (`4GiB` becomes bytes).
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from typing import Any

from tpi.errors import ConfigError
from tpi.units import format_bytes, parse_bytes

_MAX_COUNT = 1_000_000


def check_count(
    name: str, value: object, low: int = 1, high: int = _MAX_COUNT, or_: str = ""
) -> None:
    """Refuse all but a whole number from `low` to `high`; `or_` is said to be allowed too."""
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        also = f", or {or_}" if or_ else ""
        raise ConfigError(
            f"{name}: got {value!r}, expected a whole number from {low} to {high}{also}"
        )


def check_number(name: str, value: object, low: float, high: float) -> float:
    """Refuse all but a number from `low` to `high`."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
        raise ConfigError(f"{name}: got {value!r}, expected a number from {low:g} to {high:g}")
    return float(value)


def check_text(name: str, value: object) -> None:
    """Refuse all but a text of at least one character."""
    if not isinstance(value, str) or not value or "\0" in value:
        raise ConfigError(f"{name}: got {value!r}, expected a name")


def check_flag(name: str, value: object) -> None:
    """Refuse all but true and false."""
    if not isinstance(value, bool):
        raise ConfigError(f"{name}: got {value!r}, expected true or false")


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Refuse all but one of `choices`."""
    if value not in choices:
        near = isinstance(value, str) and get_close_matches(value, choices, n=1)
        raise ConfigError(
            f"{name}: got {value!r}, expected {' | '.join(choices)}"
            + (nearest(str(value), choices) if near else "")
        )


def check_size(name: str, value: object, low: int = 1, high: int = 1 << 62) -> int:
    """Refuse all but a size from `low` to `high` bytes; returns it in bytes."""
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


def make_options(cls: Any, raw: object, name: str) -> Any:
    """A dataclass of options from plain ones, which it checks; `name` is empty at the top.

    Raises:
        ConfigError: No mapping, an unknown option, or one that must be given and is not.
    """
    if isinstance(raw, cls):
        return raw
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{name}: got {raw!r}, expected options")
    known = [f.name for f in fields(cls)]
    for key in raw:
        if key not in known:
            full = f"{name}.{key}" if name else key
            raise ConfigError(f"unknown option {full}{nearest(str(key), known)}")
    try:
        return cls(**raw)
    except TypeError as exc:
        raise ConfigError(f"{name}: {str(exc).partition('__init__() ')[2] or exc}") from exc
