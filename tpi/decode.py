"""Untrusted JSON into typed values: `decode` for bytes, `convert` for what is parsed already.

The types are `msgspec.Struct`s (or anything else that msgspec converts to); what a value may be is
said there, once, by `Meta` constraints. JSON is strict: no key twice, no NaN. A refusal is one line
that names the file, the key, what was expected and what was found:

    spec a.json: requests[0].new_tokens must be an integer in 1..2147483648, got 0
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from tpi.files import ErrorType, parse_json, read_small_file

T = TypeVar("T")

# A constraint that is used in several types. `description` is what an error calls it.
Count = Annotated[int, Meta(ge=1, le=1 << 31)]
CountOrZero = Annotated[int, Meta(ge=0, le=1 << 31)]
NumBytes = Annotated[int, Meta(ge=1, le=1 << 62)]
Text = Annotated[str, Meta(min_length=1, pattern=r"^[^\x00]*$", description="a non-empty string")]


def one_of(choices: Iterable[str]) -> Meta:
    """The constraint of a string that is one of some choices."""
    words = tuple(choices)
    pattern = rf"^(?:{'|'.join(map(re.escape, words))})\Z"
    return Meta(pattern=pattern, description=" | ".join(words))


_PATH = re.compile(r" - at `(?:key in )?\$(?P<path>.*)`$")
_MISSING = re.compile(r"Object missing required field `(?P<key>.*?)`")
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<key>.*?)`")
_STEP = re.compile(r"\.(?P<key>[^.\[\]]+)|\[(?P<index>\d+|\.\.\.)\]")


def decode(data: bytes, as_type: type[T], where: str, error: ErrorType) -> T:
    """Parse strict JSON and convert it.

    Raises:
        error: Not JSON, a key that stands twice, or as `convert`; the message opens with `where`.
    """
    return convert(parse_json(data, where, error), as_type, where, error)


def decode_file(path: Path, as_type: type[T], max_bytes: int, error: ErrorType) -> T:
    """Read and decode a regular file of at most `max_bytes`.

    Raises:
        error: It cannot be read, or as `decode`; the message opens with the path.
    """
    return decode(read_small_file(path, max_bytes, error), as_type, str(path), error)


def convert(raw: object, as_type: type[T], where: str, error: ErrorType) -> T:
    """Convert what JSON or YAML gave into a type, checking everything in it.

    Raises:
        error: One line: `where`, the key, what was expected and what was found.
    """
    try:
        return msgspec.convert(raw, as_type)
    except msgspec.ValidationError as exc:
        raise error(f"{where}: {_refusal(str(exc), raw, as_type)}") from exc


def _refusal(message: str, raw: object, as_type: object) -> str:
    """What msgspec found, in our words."""
    match = _PATH.search(message)
    path = match["path"] if match else ""
    text = message[: match.start()] if match else message
    key = path.lstrip(".")
    if missing := _MISSING.match(text):
        return f"{_join(key, missing['key'])} is missing"
    if unknown := _UNKNOWN.match(text):
        holder = _type_at(as_type, path)
        close = difflib.get_close_matches(unknown["key"], _field_names(holder), 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        return f"unknown key {_join(key, unknown['key'])!r}{hint}"
    expected = _describe(_type_at(as_type, path)) or _plain(text)
    if "[...]" in path or (match and "key in" in match[0]):  # msgspec does not say which key
        return f"{key.replace('[...]', '.*') or 'it'} must be {expected}"
    return f"{key or 'it'} must be {expected}, got {shown(_value_at(raw, path))}"


def shown(value: object) -> str:
    """A value for a message: on one line and short."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _plain(text: str) -> str:
    """What msgspec says, where the type has no better ones."""
    text = text.partition(", got ")[0].removeprefix("Expected ").replace("`", "")
    return text[:1].lower() + text[1:]


def _value_at(raw: object, path: str) -> object:
    for step in _STEP.finditer(path):
        if step["index"] is not None and isinstance(raw, list | tuple):
            raw = raw[int(step["index"])]
        elif isinstance(raw, Mapping):
            raw = raw.get(step["key"])
    return raw


def _type_at(as_type: object, path: str) -> Any:
    """The `msgspec.inspect` type that stands at a path; None where a union hides it."""
    from msgspec import inspect  # only a refusal needs it

    found: Any = inspect.type_info(as_type)
    for step in _STEP.finditer(path):
        found = _inner(found, step["key"])
    return found


def _inner(outer: Any, key: str | None) -> Any:
    from msgspec import inspect

    if isinstance(outer, inspect.Metadata):
        return _inner(outer.type, key)
    if isinstance(outer, inspect.UnionType):
        found = [_inner(each, key) for each in outer.types]
        found = [each for each in found if each is not None]
        return found[0] if len(found) == 1 else None
    if key is not None:
        fields = getattr(outer, "fields", ())
        return next((f.type for f in fields if f.encode_name == key), None)
    if isinstance(outer, inspect.DictType):
        return outer.value_type
    return getattr(outer, "item_type", None)


def _field_names(holder: Any) -> list[str]:
    return [field.encode_name for field in getattr(holder, "fields", ())]


def _describe(wanted: Any) -> str:
    """What a type takes, for people; empty where msgspec's words are as good."""
    from msgspec import inspect

    if isinstance(wanted, inspect.Metadata):
        extra = wanted.extra_json_schema or {}
        return str(extra.get("description") or _describe(wanted.type))
    if isinstance(wanted, inspect.UnionType):
        words = [_describe(each) for each in wanted.types]
        return " or ".join(words) if all(words) else ""
    if isinstance(wanted, inspect.LiteralType):
        return " | ".join(map(str, wanted.values))
    if isinstance(wanted, inspect.IntType | inspect.FloatType):
        return _number(wanted, "an integer" if isinstance(wanted, inspect.IntType) else "a number")
    return next((words for kind, words in _words() if isinstance(wanted, kind)), "")


def _words() -> tuple[tuple[type, str], ...]:
    from msgspec import inspect

    return (
        (inspect.NoneType, "null"),
        (inspect.BoolType, "true or false"),
        (inspect.ListType, "a list"),
        (inspect.VarTupleType, "a list"),
        (inspect.StructType, "a JSON object"),
        (inspect.DataclassType, "a JSON object"),
        (inspect.DictType, "a JSON object"),
    )


def _number(wanted: Any, noun: str) -> str:
    low = wanted.ge if wanted.ge is not None else wanted.gt
    high = wanted.le if wanted.le is not None else wanted.lt
    if low is not None and high is not None:
        return f"{noun} in {low:.12g}..{high:.12g}"
    if low is not None:
        return f"{noun} {'>=' if wanted.ge is not None else '>'} {low:.12g}"
    if high is not None:
        return f"{noun} {'<=' if wanted.le is not None else '<'} {high:.12g}"
    return noun
