"""What one program of one system is told: `spec.json`.

The harness writes one file per device, the program reads it with `load_spec`. `NodeSpec` is what
every system has in common; `options` belongs to the system, and `system_options` reads those of
`tpi node`. Nothing here needs torch. Read `NodeSpec` first.

    {"schema": 1, "system": "tpi", "rank": 0, "world_size": 2, "session": "<32 hex digits>",
     "bind": "127.0.0.1", "master": "127.0.0.1:4711", "model_dir": "...", "threads": 1,
     "dtype": "float32", "time_scale": 1.0, "max_batch": 1, "max_tokens": 64,
     "requests": [{"id": "r0", "warmup": true, "prompt_ids": [1, 2], "new_tokens": 32}],
     "options": {"window": 2, ...}}

Workers get the same requests without `prompt_ids`.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tpi.comm.allreduces.registry import find_allreduce
from tpi.errors import ConfigError

SPEC_SCHEMA = 1
DTYPES = ("float32", "bfloat16")
WIRE_DTYPES = ("float32", "bfloat16")

# A prompt of a million ids is 8 MB of JSON; more is a mistake, not a prompt.
_MAX_SPEC_BYTES = 64 << 20
_MAX_COUNT = 1 << 31
_MAX_BYTES = 1 << 62
_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_SESSION = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Request:
    """One generation: a prompt (only rank 0 has it) and how many tokens to make, greedily."""

    id: str
    new_tokens: int
    prompt_ids: tuple[int, ...] | None = None
    warmup: bool = False


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """Everything one program needs to know; `options` are the system's own.

    Attributes:
        session: 32 hexadecimal digits, the same on all ranks and new for every start.
        bind: Address this rank listens on.
        master: `host:port` of rank 0; None only where `world_size` is 1.
        model_dir: This rank's shard folder (tpi) or the Hugging Face folder (baselines).
        dtype: What the arithmetic is done in; storage is the folder's affair.
        time_scale: Every deadline is multiplied by it.
        max_tokens: Largest prompt + new tokens of any sequence.
        keep_spans: Whether every span of a request that is no warm-up is written out at its end.
    """

    system: str
    rank: int
    world_size: int
    session: str
    bind: str
    master: str | None
    model_dir: Path
    threads: int
    dtype: str
    max_tokens: int
    requests: tuple[Request, ...]
    time_scale: float = 1.0
    max_batch: int = 1
    keep_spans: bool = False
    options: Mapping[str, object] = field(default_factory=dict)

    def request(self, request_id: str) -> Request:
        """The request of that id.

        Raises:
            ConfigError: There is none.
        """
        for request in self.requests:
            if request.id == request_id:
                return request
        known = ", ".join(r.id for r in self.requests)
        raise ConfigError(f"no request {request_id!r} in the spec (there are: {known})")


@dataclass(frozen=True, slots=True)
class SystemOptions:
    """The options of `tpi node`.

    Attributes:
        window: Blocks held at a time; None keeps all weights in memory ("all" in JSON).
        memory_budget: Bytes this device may use, from which the planner picks what to retain.
        prefill_chunk: Most prompt tokens in one step.
        trust_network: Allow addresses other than loopback without encryption.
        trace: File that gets every span, or None; not with `keep_spans`.
        temperature: 0 is greedy; else logits are divided by it and a token is drawn.
        top_k: Draw among the k most likely tokens only; 0 is all.
        top_p: Draw among the fewest tokens whose probabilities reach this sum.
        seed: Of the draws.
        stop_ids: A sequence that makes one of these tokens ends there.
    """

    window: int | None = 2
    memory_budget: int | None = None
    allreduce: str = "star"
    wire_dtype: str = "float32"
    prefill_chunk: int = 512
    trust_network: bool = False
    trace: Path | None = None
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    stop_ids: tuple[int, ...] = ()


class Fields:
    """Typed reading of one JSON object: each `take_*` removes a key, `finish` refuses the rest.

    Every error is one line that names the file, the key, what was expected and what was found.
    """

    def __init__(self, raw: object, where: str) -> None:
        if not isinstance(raw, Mapping):
            raise ConfigError(f"{where}: must be a JSON object, got {_shown(raw)}")
        self._left: dict[str, Any] = dict(raw)
        self._where = where

    def take(self, key: str, what: str, fits: Callable[[Any], bool], *default: Any) -> Any:
        """Remove and return `key`; it must satisfy `fits`, described by `what`."""
        if key not in self._left:
            if default:
                return default[0]
            raise ConfigError(f"{self._where}: {key} is missing")
        value = self._left.pop(key)
        if not fits(value):
            raise ConfigError(f"{self._where}: {key} must be {what}, got {_shown(value)}")
        return value

    def take_int(self, key: str, low: int, *default: Any, high: int = _MAX_COUNT) -> int:
        """An integer in low..high."""
        return int(
            self.take(key, f"an integer in {low}..{high}", lambda v: is_int(v, low, high), *default)
        )

    def take_number(self, key: str, low: float, high: float, *default: float) -> float:
        """A number in low..high."""
        return float(
            self.take(
                key, f"a number in {low:g}..{high:g}", lambda v: is_number(v, low, high), *default
            )
        )

    def take_str(self, key: str, *default: Any) -> str:
        """A string that is not empty."""
        return str(self.take(key, "a non-empty string", _is_text, *default))

    def take_choice(self, key: str, choices: tuple[str, ...], *default: Any) -> str:
        """One of a few words."""
        return str(self.take(key, " | ".join(choices), lambda v: v in choices, *default))

    def take_bool(self, key: str, *default: Any) -> bool:
        """`true` or `false`."""
        return bool(self.take(key, "true or false", lambda v: isinstance(v, bool), *default))

    def finish(self) -> None:
        """Refuse what nobody asked for: an unknown key is a typing error, not a wish."""
        if self._left:
            raise ConfigError(f"{self._where}: unknown key {sorted(self._left)[0]!r}")


def load_spec(path: Path) -> NodeSpec:
    """Read and check a spec file.

    Raises:
        ConfigError: The file cannot be read, or something in it does not fit; one line.
    """
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_SPEC_BYTES + 1)
    except OSError as exc:
        raise ConfigError(f"spec {path}: {exc.strerror}") from exc
    if len(text) > _MAX_SPEC_BYTES:
        raise ConfigError(f"spec {path}: larger than {_MAX_SPEC_BYTES} bytes")
    try:
        raw = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as exc:
        raise ConfigError(f"spec {path}: not JSON: {exc}") from exc
    return parse_spec(raw, f"spec {path}")


def parse_spec(raw: object, where: str = "spec") -> NodeSpec:
    """Check a decoded spec; `where` opens every error message."""
    fields = Fields(raw, where)
    fields.take("schema", str(SPEC_SCHEMA), lambda v: v == SPEC_SCHEMA)
    world_size = fields.take_int("world_size", 1, high=1024)
    requests = fields.take("requests", "a list of requests", lambda v: isinstance(v, list))
    spec = NodeSpec(
        system=fields.take_str("system"),
        rank=fields.take_int("rank", 0, high=world_size - 1),
        world_size=world_size,
        session=fields.take("session", "32 hexadecimal digits", lambda v: _matches(_SESSION, v)),
        bind=fields.take_str("bind"),
        master=fields.take("master", "host:port", lambda v: _is_address(v, world_size)),
        model_dir=Path(fields.take_str("model_dir")),
        threads=fields.take_int("threads", 1, high=1024),
        dtype=fields.take_choice("dtype", DTYPES),
        max_tokens=fields.take_int("max_tokens", 1),
        requests=tuple(
            _parse_request(r, f"{where}: requests[{i}]") for i, r in enumerate(requests)
        ),
        time_scale=float(fields.take("time_scale", "a number > 0", _is_positive, 1.0)),
        max_batch=fields.take_int("max_batch", 1, 1),
        keep_spans=fields.take_bool("keep_spans", False),
        options=fields.take("options", "a JSON object", lambda v: isinstance(v, Mapping), {}),
    )
    fields.finish()
    _check_requests(spec, where)
    return spec


def spec_to_json(spec: NodeSpec) -> dict[str, object]:
    """The JSON form; `parse_spec` of it gives the spec again."""
    names = ("system", "rank", "world_size", "session", "bind", "master", "threads", "dtype")
    raw: dict[str, object] = {name: getattr(spec, name) for name in names}
    return {
        "schema": SPEC_SCHEMA,
        **raw,
        "model_dir": str(spec.model_dir),
        "time_scale": spec.time_scale,
        "max_batch": spec.max_batch,
        "max_tokens": spec.max_tokens,
        "keep_spans": spec.keep_spans,
        "requests": [_request_to_json(r) for r in spec.requests],
        "options": dict(spec.options),
    }


def dump_spec(spec: NodeSpec, path: Path) -> None:
    """Write the spec, after checking it as its reader will."""
    raw = spec_to_json(spec)
    parse_spec(raw)
    path.write_text(json.dumps(raw), encoding="utf-8")


def system_options(spec: NodeSpec) -> SystemOptions:
    """The options of `tpi node`, checked; absent ones have their default.

    Raises:
        ConfigError: An unknown option or a value that does not fit.
    """
    fields = Fields(spec.options, "spec options")
    window = fields.take(
        "window", 'an integer >= 1 or "all"', lambda v: v == "all" or is_int(v, 1), 2
    )
    trace = fields.take("trace", "a path or null", lambda v: v is None or _is_text(v), None)
    options = SystemOptions(
        window=None if window == "all" else window,
        memory_budget=fields.take(
            "memory_budget",
            "bytes >= 1 or null",
            lambda v: v is None or is_int(v, 1, 1 << 62),
            None,
        ),
        allreduce=find_allreduce(fields.take("allreduce", "a name", _is_text, "star")).name,
        wire_dtype=fields.take_choice("wire_dtype", WIRE_DTYPES, "float32"),
        prefill_chunk=fields.take_int("prefill_chunk", 1, 512),
        trust_network=fields.take_bool("trust_network", False),
        trace=None if trace is None else Path(trace),
        temperature=fields.take_number("temperature", 0.0, 100.0, 0.0),
        top_k=fields.take_int("top_k", 0, 0),
        top_p=fields.take_number("top_p", 0.0, 1.0, 1.0),
        seed=fields.take_int("seed", 0, 0, high=(1 << 63) - 1),
        stop_ids=tuple(fields.take("stop_ids", "a list of token ids", _are_ids, [])),
    )
    fields.finish()
    if options.trace is not None and spec.keep_spans:
        raise ConfigError("spec options: trace and keep_spans exclude each other: give one")
    return options


def is_int(value: object, low: int, high: int = _MAX_COUNT) -> bool:
    """Whether a JSON value is an integer in low..high; `true` is not."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _parse_request(raw: object, where: str) -> Request:
    fields = Fields(raw, where)
    ids = fields.take("prompt_ids", "a non-empty list of token ids", _are_token_ids, None)
    request = Request(
        id=fields.take("id", "1-64 letters, digits, _ . -", lambda v: _matches(_ID, v)),
        new_tokens=fields.take_int("new_tokens", 1),
        prompt_ids=None if ids is None else tuple(ids),
        warmup=fields.take_bool("warmup", False),
    )
    fields.finish()
    return request


def _request_to_json(request: Request) -> dict[str, object]:
    raw: dict[str, object] = {
        "id": request.id,
        "warmup": request.warmup,
        "new_tokens": request.new_tokens,
    }
    if request.prompt_ids is not None:
        raw["prompt_ids"] = list(request.prompt_ids)
    return raw


def _check_requests(spec: NodeSpec, where: str) -> None:
    ids = [r.id for r in spec.requests]
    if len(set(ids)) != len(ids):
        raise ConfigError(f"{where}: two requests have the same id")
    for request in spec.requests:
        if (request.prompt_ids is None) == (spec.rank == 0):
            need = "needs" if spec.rank == 0 else "must not have"
            raise ConfigError(
                f"{where}: request {request.id} of rank {spec.rank} {need} prompt_ids"
            )
        num_tokens = len(request.prompt_ids or ()) + request.new_tokens
        if num_tokens > spec.max_tokens:
            raise ConfigError(
                f"{where}: request {request.id} has {num_tokens} tokens with its answer,"
                f" max_tokens is {spec.max_tokens}"
            )


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return result


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value != "" and "\0" not in value


def _matches(pattern: re.Pattern[str], value: object) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def is_number(value: object, low: float, high: float) -> bool:
    """Whether a JSON value is a number in low..high."""
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1e6


def _is_address(value: object, world_size: int) -> bool:
    if value is None:
        return world_size == 1
    if not isinstance(value, str):
        return False
    host, _, port = value.rpartition(":")
    return host != "" and port.isascii() and port.isdigit() and 0 < int(port) < 65536


def _are_token_ids(value: object) -> bool:
    return value is None or (_are_ids(value) and value != [])


def _are_ids(value: object) -> bool:
    return isinstance(value, list) and all(is_int(v, 0) for v in value)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
