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

from tpi.errors import TpiError
from tpi.files import ErrorType, parse_json, read_small_file

T = TypeVar("T")

# A constraint that is used in several types. `description` is what an error calls it.
Count = Annotated[int, Meta(ge=1, le=1 << 31)]
CountOrZero = Annotated[int, Meta(ge=0, le=1 << 31)]
NumBytes = Annotated[int, Meta(ge=1, le=1 << 62)]
Text = Annotated[str, Meta(min_length=1, pattern=r"^[^\x00]*$", description="a non-empty string")]

_Step = str | int

# Compiled when something is refused, not when a worker starts.
_PATH = r" - at `(?P<of_key>key)?(?:` in `| in )?\$(?P<path>.*)`$"
_MISSING = r"Object missing required field `(?P<key>.*?)`"
_UNKNOWN = r"Object contains unknown field `(?P<key>.*?)`"
_STEP = r"\.(?P<key>[^.\[\]]+)|\[(?P<index>\d+|\.\.\.)\]"


def one_of(choices: Iterable[str]) -> Meta:
    """The constraint of a string that is one of some choices."""
    words = tuple(choices)
    pattern = rf"^(?:{'|'.join(map(re.escape, words))})\Z"
    return Meta(pattern=pattern, description=" | ".join(words))


def decode(data: bytes, as_type: type[T], where: str, error: ErrorType, advice: str = "") -> T:
    """Parse strict JSON and convert it.

    Raises:
        error: Not JSON, a key that stands twice, or as `convert`; the message opens with `where`.
    """
    return convert(parse_json(data, where, error), as_type, where, error, advice)


def decode_file(
    path: Path, as_type: type[T], max_bytes: int, error: ErrorType, advice: str = ""
) -> T:
    """Read and decode a regular file of at most `max_bytes`.

    Raises:
        error: It cannot be read, or as `decode`; the message opens with the path.
    """
    return decode(read_small_file(path, max_bytes, error), as_type, str(path), error, advice)


def convert(raw: object, as_type: type[T], where: str, error: ErrorType, advice: str = "") -> T:
    """Convert what JSON or YAML gave into a type, checking everything in it.

    Raises:
        error: One line: `where`, the key, what was expected, what was found, and `advice`.
    """
    try:
        return msgspec.convert(raw, as_type, dec_hook=_other)
    except msgspec.ValidationError as exc:
        message = f"{where}: {_refusal(str(exc), raw, as_type)}"
        raise error(f"{message}; {advice}" if advice else message) from exc
    except TpiError as exc:  # of a type's own check
        raise error(f"{where}: {exc}") from exc


def _other(as_type: type[Any], value: Any) -> object:
    """Types that JSON has no form of its own for: paths, which are strings there."""
    if as_type is object:
        return value
    if as_type is Path and isinstance(value, str) and value and "\0" not in value:
        return Path(value)
    raise ValueError(f"no {as_type.__name__}")


def _refusal(message: str, raw: object, as_type: type) -> str:
    """What msgspec found, in our words."""
    match = re.search(_PATH, message)
    text = message[: match.start()] if match else message
    steps = _steps(match["path"], message, raw, as_type) if match else []
    if match and match["of_key"]:
        bad = _bad_key(steps, message, raw, as_type)
        wanted = _describe(getattr(_type_at(as_type, steps), "key_type", None)) or _plain(text)
        return f"{_render([*steps, bad])}: the key must be {wanted}, got {shown(bad)}"
    if missing := re.match(_MISSING, text):
        return f"{_render([*steps, missing['key']])} is missing"
    if unknown := re.match(_UNKNOWN, text):
        known = [field.encode_name for field in getattr(_type_at(as_type, steps), "fields", ())]
        close = difflib.get_close_matches(unknown["key"], known, 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        return f"unknown key {_render([*steps, unknown['key']])!r}{hint}"
    expected = _describe(_type_at(as_type, steps)) or _plain(text)
    return f"{_render(steps) or 'it'} must be {expected}, got {shown(_value_at(raw, steps))}"


def shown(value: object) -> str:
    """A value for a message: on one line and short."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _plain(text: str) -> str:
    """What msgspec says, where the type has no better ones."""
    text = text.partition(", got ")[0].removeprefix("Expected ").replace("`", "")
    return text[:1].lower() + text[1:]


def _steps(path: str, message: str, raw: object, as_type: type) -> list[_Step]:
    """The keys and indices of a path; msgspec leaves out which key of a mapping it was."""
    steps: list[_Step] = []
    for step in re.finditer(_STEP, path):
        if step["key"] is not None:
            steps.append(step["key"])
        elif step["index"] == "...":
            steps.append(_bad_key(steps, message, raw, as_type))
        else:
            steps.append(int(step["index"]))
    return steps


def _bad_key(steps: list[_Step], message: str, raw: object, as_type: type) -> _Step:
    """The first key of the mapping at `steps` that alone brings the same refusal."""
    mapping = _value_at(raw, steps)
    for key, value in mapping.items() if isinstance(mapping, Mapping) else ():
        try:
            msgspec.convert(_with(raw, steps, {key: value}), as_type, dec_hook=_other)
        except msgspec.ValidationError as exc:
            if str(exc) == message:
                return key  # type: ignore[no-any-return]  # a key is whatever the file has
    return "..."


def _with(raw: Any, steps: list[_Step], value: object) -> object:
    """A copy of `raw` that has another value at `steps`."""
    if not steps:
        return value
    copy: Any = dict(raw) if isinstance(raw, Mapping) else list(raw)
    copy[steps[0]] = _with(raw[steps[0]], steps[1:], value)
    return copy


def _render(steps: list[_Step]) -> str:
    """A path for people: `requests[0].id`, `files[attn-000.safetensors].sha256`."""
    text = ""
    for step in steps:
        name = str(step)
        name = name if name.isprintable() and len(name) <= 80 else shown(step)
        text += f".{name}" if name.isidentifier() else f"[{name}]"
    return text.removeprefix(".")


def _value_at(raw: Any, steps: list[_Step]) -> object:
    for step in steps:
        raw = raw[step]
    return raw


def _type_at(as_type: type, steps: list[_Step]) -> Any:
    """The `msgspec.inspect` type that stands at a path; None where a union hides it."""
    from msgspec import inspect  # only a refusal needs it

    found: Any = inspect.type_info(as_type)
    for step in steps:
        found = _inner(found, step)
    return found


def _inner(outer: Any, step: _Step) -> Any:
    from msgspec import inspect

    if isinstance(outer, inspect.Metadata):
        return _inner(outer.type, step)
    if isinstance(outer, inspect.UnionType):
        found = [_inner(each, step) for each in outer.types]
        found = [each for each in found if each is not None]
        return found[0] if len(found) == 1 else None
    if isinstance(outer, inspect.DictType):
        return outer.value_type
    if isinstance(outer, inspect.TupleType) and isinstance(step, int):
        return outer.item_types[step]
    fields = getattr(outer, "fields", ())
    named = (field.type for field in fields if field.encode_name == step)
    return next(named, getattr(outer, "item_type", None))


def _describe(wanted: Any) -> str:
    """What a type takes, for people; empty where msgspec's words are as good."""
    from msgspec import inspect

    if isinstance(wanted, inspect.Metadata):
        extra = wanted.extra_json_schema or {}
        return str(extra.get("description") or _describe(wanted.type))
    if isinstance(wanted, inspect.UnionType):
        words = [_describe(each) for each in wanted.types]
        return " or ".join(words) if all(words) else ""
    if isinstance(wanted, inspect.TupleType):
        return f"a list of {len(wanted.item_types)}"
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
        (inspect.StrType, "a string"),
        (inspect.ListType, "a list"),
        (inspect.VarTupleType, "a list"),
        (inspect.StructType, "a JSON object"),
        (inspect.DataclassType, "a JSON object"),
        (inspect.DictType, "a JSON object"),
        (inspect.CustomType, "a non-empty string"),  # a path
    )


def _number(wanted: Any, noun: str) -> str:
    low = wanted.ge if wanted.ge is not None else wanted.gt
    high = wanted.le if wanted.le is not None else wanted.lt
    if low is not None and high is not None:
        return f"{noun} in {_bound(low)}..{_bound(high)}"
    if low is not None:
        return f"{noun} {'>=' if wanted.ge is not None else '>'} {_bound(low)}"
    if high is not None:
        return f"{noun} {'<=' if wanted.le is not None else '<'} {_bound(high)}"
    return noun


def _bound(limit: float) -> str:
    return str(limit) if isinstance(limit, int) else f"{limit:.12g}"
