"""Typed access to the keys of a JSON object that somebody else wrote.

A subclass says which error a refusal is and what the user can do. Every refusal is one line with
file, key, what was expected and what was there. A key that is null counts as missing, as it does
for Transformers.
"""

import math
from collections.abc import Mapping

from tpi.errors import TpiError


def shorten(value: object) -> str:
    """A value for a message: on one line, without control characters, at most 80 long."""
    return repr(value)[:80]


def json_object(value: object, what: str, error: type[TpiError]) -> dict[str, object]:
    """The value, if it is a JSON object."""
    if not isinstance(value, dict):
        raise error(f"{what}: expected a JSON object, got {shorten(value)}")
    return value


class JsonKeys:
    """Reads keys of `raw`, which lies at `where` (file, and key of the outer object)."""

    error: type[TpiError] = TpiError
    advice = ""

    def __init__(self, raw: Mapping[str, object], where: str) -> None:
        self.raw = raw
        self.where = where

    def fail(self, key: str, expected: str, advice: str = "") -> TpiError:
        """The error that says what `key` should have been; for the caller to raise."""
        got = shorten(self.raw[key]) if key in self.raw else "nothing"
        return self.error(
            f"{self.where}: {key}: expected {expected}, got {got}; {advice or self.advice}"
        )

    def given(self, key: str) -> bool:
        """Whether the key is there and not null."""
        return self.raw.get(key) is not None

    def integer(self, key: str, low: int, high: int, default: int | None = None) -> int:
        """An integer from `low` to `high`; true is none, and neither is 4.0."""
        if default is not None and not self.given(key):
            return default
        value = self.raw.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self.fail(key, f"an integer from {low} to {high}")
        return value

    def number(self, key: str, low: float, high: float, default: float | None = None) -> float:
        """A finite number from `low` to `high`."""
        if default is not None and not self.given(key):
            return default
        value = self.raw.get(key)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self.fail(key, "a number")
        if not low <= value <= high or not math.isfinite(value):
            raise self.fail(key, f"a number from {low:g} to {high:g}")
        return float(value)

    def flag(self, key: str) -> bool:
        """True or false; false if missing."""
        value = self.raw.get(key)
        if value is not None and not isinstance(value, bool):
            raise self.fail(key, "true or false")
        return bool(value)

    def word(self, key: str, default: str | None = None, max_chars: int = 4096) -> str:
        """A string that is not empty."""
        if default is not None and not self.given(key):
            return default
        value = self.raw.get(key)
        if not isinstance(value, str) or not 0 < len(value) <= max_chars:
            raise self.fail(key, f"a string of 1 to {max_chars} characters")
        return value

    def mapping(self, key: str) -> dict[str, object]:
        """A JSON object."""
        value = self.raw.get(key)
        if not isinstance(value, dict):
            raise self.fail(key, "a JSON object")
        return value
