"""What one program of one system is told: `spec.json`.

The harness writes one file per device, the program reads it with `load_spec`. `NodeSpec` is what
every system has in common; `options` belongs to the system, which decodes them with `own_options`.
Nothing here needs torch.

    {"schema": 2, "system": "tpi", "rank": 0, "world_size": 2, "session": "<32 hex digits>",
     "bind": "127.0.0.1", "master": "127.0.0.1:4711", "model_dir": "...", "threads": 1,
     "compute": {"window": 2, "dtype": "float32", "max_tokens": 64, ...},
     "requests": [{"id": "r0", "new_tokens": 32, "prompt_ids": [1, 2], "warmup": true}],
     "time_scale": 1.0, "keep_spans": false, "trust_network": false,
     "options": {"sampling": {"temperature": 0.0, ...}}}

`compute` holds `tpi.options.ComputeOptions`; what a system cannot choose is not looked at. Workers
get the same requests without `prompt_ids`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from tpi.decode import Count, Text, convert, shown
from tpi.errors import ConfigError
from tpi.files import parse_json
from tpi.options import GREEDY, ComputeOptions, SamplingOptions, TokenId

SPEC_SCHEMA: Final = 2
T = TypeVar("T", bound=Struct)

# A prompt of a million ids is 8 MB of JSON; more is a mistake, not a prompt.
_MAX_SPEC_BYTES = 64 << 20
_MAX_RANKS = 1024

RequestId = Annotated[
    str, Meta(pattern=r"\A[A-Za-z0-9_.-]{1,64}\Z", description="1-64 letters, digits, _ . -")
]
_Ids = Annotated[
    tuple[TokenId, ...], Meta(min_length=1, description="a non-empty list of token ids")
]
_Session = Annotated[str, Meta(pattern=r"\A[0-9a-f]{32}\Z", description="32 hexadecimal digits")]
_Address = Annotated[str, Meta(pattern=r"\A[^\x00]+:[0-9]{1,5}\Z", description="host:port")]


class Request(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One generation: a prompt (only rank 0 has it) and how many tokens to make."""

    id: RequestId
    new_tokens: Count
    prompt_ids: _Ids | None = None
    warmup: bool = False


class NodeSpec(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything one program needs to know."""

    schema: Literal[2] = SPEC_SCHEMA
    system: Text
    rank: Annotated[int, Meta(ge=0, lt=_MAX_RANKS)]
    world_size: Annotated[int, Meta(ge=1, le=_MAX_RANKS)]
    session: _Session  # the same on all ranks and new for every start
    bind: Text  # address this rank listens on
    master: _Address | None  # of rank 0; None only where `world_size` is 1
    model_dir: Path  # this rank's shard folder (tpi) or the Hugging Face folder (baselines)
    threads: Annotated[int, Meta(ge=1, le=1024)]
    compute: ComputeOptions = ComputeOptions()
    requests: tuple[Request, ...]
    # Every deadline is multiplied by it.
    time_scale: Annotated[float, Meta(gt=0, le=1e6, description="a number > 0")] = 1.0
    keep_spans: bool = False  # write out the spans of requests that are no warm-up at their end
    trust_network: bool = False  # allow addresses other than loopback without encryption
    options: Mapping[str, Any] = {}  # the system's own

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


class OwnOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The options of `tpi node` beside how it computes."""

    sampling: SamplingOptions = GREEDY


def load_spec(path: Path) -> NodeSpec:
    """Read and check a spec file.

    Raises:
        ConfigError: The file cannot be read, or something in it does not fit; one line.
    """
    where = f"spec {path}"
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_SPEC_BYTES + 1)
    except OSError as exc:
        raise ConfigError(f"{where}: {exc.strerror}") from exc
    if len(text) > _MAX_SPEC_BYTES:
        raise ConfigError(f"{where}: larger than {_MAX_SPEC_BYTES} bytes")
    return parse_spec(parse_json(text, where, ConfigError), where)


def parse_spec(raw: object, where: str = "spec") -> NodeSpec:
    """Check a decoded spec; `where` opens every error message."""
    spec = convert(raw, NodeSpec, where, ConfigError)
    if spec.rank >= spec.world_size:
        raise ConfigError(
            f"{where}: rank must be an integer in 0..{spec.world_size - 1}, got {spec.rank}"
        )
    if not _is_address(spec.master, spec.world_size):
        raise ConfigError(f"{where}: master must be host:port, got {shown(spec.master)}")
    _check_requests(spec, where)
    return spec


def to_json(value: Struct) -> dict[str, Any]:
    """The JSON form of a spec or of a system's own options; `parse_spec` takes a spec's again."""
    encoded = msgspec.json.encode(value, enc_hook=str)  # str: of paths
    return msgspec.json.decode(encoded, type=dict[str, Any])


def dump_spec(spec: NodeSpec, path: Path) -> None:
    """Write the spec, after checking it as its reader will."""
    raw = to_json(spec)
    parse_spec(raw)
    path.write_text(json.dumps(raw), encoding="utf-8")


def own_options(spec: NodeSpec, as_type: type[T]) -> T:
    """The system's own options, checked; absent ones have their default.

    Raises:
        ConfigError: An unknown option or a value that does not fit.
    """
    return convert(spec.options, as_type, "spec options", ConfigError)


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
        if num_tokens > spec.compute.max_tokens:
            raise ConfigError(
                f"{where}: request {request.id} has {num_tokens} tokens with its answer,"
                f" max_tokens is {spec.compute.max_tokens}"
            )


def _is_address(master: str | None, world_size: int) -> bool:
    if master is None:
        return world_size == 1
    return 0 < int(master.rpartition(":")[2]) < 65536
