"""Records of schema version 1 as records of today's; files stay as they are.

Version 1 kept configuration and environment as they came, and notes as lines of text.
"""

import functools
import re
from string import Formatter
from typing import Any, get_type_hints

import msgspec

from results.records.notes import (
    Contended,
    Cut,
    DistinctLayers,
    LinkFaults,
    LinkFaultsFailed,
    Note,
    OwnForm,
    OwnSetting,
    Said,
)
from results.records.schema import SCHEMA_VERSION, CalibratedHost, RecordError
from tpi.decode import convert

OLD_VERSION = 1
Json = dict[str, Any]

_HOST = re.compile(r"(?P<cpu_model>.*?), (?P<cores>\d+) cores\b")
_BESIDE_HOST = ("devices", "testbed_notes", "calibrated_host")
_FACTS: tuple[type[Note], ...] = (
    Cut,
    DistinctLayers,
    OwnSetting,
    OwnForm,
    Contended,
    LinkFaults,
    LinkFaultsFailed,
)
_PATTERNS = {int: r"\d+", float: r"\d+(?:\.\d+)?(?:e[+-]?\d+)?", str: ".*", int | str: r"\w+"}


class _OldRecord(msgspec.Struct):
    """What of a record of version 1 was of another shape; the rest is taken as it is."""

    system: str
    config: Json
    environment: Json
    calibration: Json
    notes: list[str]


def upgraded_record(raw: Json, where: str) -> Json:
    """A record of version 1 in the form of today's; a RecordError if its parts do not fit."""
    parts = {name: raw.get(name) for name in _OldRecord.__struct_fields__}
    old = convert(parts, _OldRecord, where, RecordError)
    changed = {
        "config": _config(old, where),
        "environment": _environment(old.environment),
        "notes": [note_of(text) for text in old.notes],
        "schema_version": SCHEMA_VERSION,
    }
    return msgspec.to_builtins({**raw, **changed})  # type: ignore[no-any-return]


def note_of(text: str) -> Note:
    """The fact that a line was made from, or a program's own words."""
    for fact in _FACTS:
        if match := _pattern(fact).fullmatch(text):
            types, values = get_type_hints(fact), match.groupdict()
            numbers = {n: int(v) for n, v in values.items() if types[n] is not str and v.isdigit()}
            return msgspec.convert(values | numbers, fact, strict=False)
    return Said(text)


@functools.cache
def _pattern(fact: type[Note]) -> re.Pattern[str]:
    """What a fact's words match, with a group for each field."""
    types, pattern = get_type_hints(fact), ""
    for words, name, *_ in Formatter().parse(fact.words):
        pattern += re.escape(words) + (f"(?P<{name}>{_PATTERNS[types[name]]})" if name else "")
    return re.compile(pattern)


def calibrated_host(words: str) -> CalibratedHost:
    """Processor and cores of a calibration, as they open what it says of itself."""
    match = _HOST.match(words)
    if match is None:
        return CalibratedHost(words)
    return CalibratedHost(words, match["cpu_model"], int(match["cores"]))


def _config(old: _OldRecord, where: str) -> Json:
    """The options of the system that ran in the place of those of all."""
    config = dict(old.config)
    systems = convert(config.pop("systems", {}), dict[str, Json], f"{where}: systems", RecordError)
    return {**config, "options": systems.get(old.system, {})}


def _environment(old: Json) -> Json:
    """Facts of the host by themselves."""
    host = {name: value for name, value in old.items() if name not in _BESIDE_HOST}
    found: Json = {name: old[name] for name in ("devices", "testbed_notes") if name in old}
    words = old.get("calibrated_host")
    if isinstance(words, str):
        found["calibrated_host"] = calibrated_host(words)
    return {**found, "host": host or None}
