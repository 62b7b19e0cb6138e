"""Sizes and times as people write and read them: `4GiB` in, `1.5 GiB` and `12.3 ms` out."""

import re
from dataclasses import dataclass

from tpi.errors import ConfigError

_FACTORS = {
    "": 1, "b": 1,
    "k": 2**10, "kib": 2**10, "kb": 10**3,
    "m": 2**20, "mib": 2**20, "mb": 10**6,
    "g": 2**30, "gib": 2**30, "gb": 10**9,
    "t": 2**40, "tib": 2**40, "tb": 10**12,
}  # fmt: skip


def parse_bytes(text: str | int, name: str) -> int:
    """Read a size such as `4GiB`, `512 MiB`, `1.5g` or `1000000` as bytes.

    Raises:
        ConfigError: not a size, or not positive; the message opens with `name`.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", str(text))
    if match is None or match[2].lower() not in _FACTORS:
        raise ConfigError(f"{name}: got {text!r}, expected a size such as 4GiB or 600MiB")
    num_bytes = int(float(match[1]) * _FACTORS[match[2].lower()])
    if num_bytes <= 0:
        raise ConfigError(f"{name}: got {text!r}, expected more than 0 bytes")
    return num_bytes


@dataclass(frozen=True, slots=True)
class Quantity:
    """A value in a unit of people's size, to three significant digits."""

    number: str  # as it is printed
    unit: str  # empty where there is none
    size: float  # of one unit

    def __str__(self) -> str:
        return f"{self.number} {self.unit}" if self.unit else self.number

    def bound(self, value: float) -> str:
        """Another value, printed as exactly and in the same unit, which is left out."""
        digits = max(0, 3 - len(self.number.partition(".")[0]))
        return f"{value / self.size:.{digits}f}"


def bytes_quantity(num_bytes: float) -> Quantity:
    """Bytes with three significant digits in binary units."""
    size = 1.0
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(num_bytes / size) < 1024 or unit == "TiB":
            break
        size *= 1024
    return Quantity(_three_digits(num_bytes / size), unit, size)


def seconds_quantity(seconds: float) -> Quantity:
    """A time with three significant digits in µs, ms, s or min."""
    if seconds < 1e-3:
        return Quantity(_three_digits(seconds * 1e6), "µs", 1e-6)
    if seconds < 1:
        return Quantity(_three_digits(seconds * 1e3), "ms", 1e-3)
    if seconds < 600:
        return Quantity(_three_digits(seconds), "s", 1.0)
    return Quantity(f"{seconds / 60:.0f}", "min", 60.0)


def format_bytes(num_bytes: float) -> str:
    """Write bytes with three significant digits in binary units."""
    return str(bytes_quantity(num_bytes))


def format_seconds(seconds: float) -> str:
    """Write a time with three significant digits in µs, ms, s or min."""
    return str(seconds_quantity(seconds))


def counted(count: int, noun: str) -> str:
    """`1 run`, `3 runs`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _three_digits(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
