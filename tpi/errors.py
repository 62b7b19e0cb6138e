"""Every error that a user may see, with the exit status it ends in.

A message says what, who, where, how long or how much, and what to do. `code` is the word that
goes into events and run records.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

EXIT_OK = 0
EXIT_INTERRUPTED = 130


class TpiError(Exception):
    """Base of all errors that are shown to a user as one line."""

    exit_status = 1
    code = "error"


class ConfigError(TpiError):
    """A value or file that the user gave cannot be used."""

    exit_status = 2
    code = "config"


class WeightsError(TpiError):
    """A checkpoint or shard is missing, truncated, altered or of the wrong form."""

    exit_status = 14
    code = "weights"


class ResourceError(TpiError):
    """Memory or disk does not suffice."""

    exit_status = 15
    code = "resource"


class NumericsError(TpiError):
    """A rank contributed NaN or infinity."""

    exit_status = 12
    code = "numerics"


class CommError(TpiError):
    """Something between two ranks went wrong."""

    exit_status = 10
    code = "comm"


class PeerLostError(CommError):
    """A peer's connection was closed or reset before the session ended."""

    exit_status = 10
    code = "peer_lost"


class PeerTimeoutError(CommError):
    """A peer sent nothing, not even a heartbeat, for the liveness deadline."""

    exit_status = 11
    code = "peer_silent"


class PeerStalledError(CommError):
    """A peer is alive but made no progress for the stall deadline."""

    exit_status = 11
    code = "peer_stalled"


class FrameError(CommError):
    """Bytes that are not a frame, or a frame that does not fit the plan."""

    exit_status = 12
    code = "protocol"


class AuthError(CommError):
    """A connection that does not belong to this session."""

    exit_status = 13
    code = "auth"


class IncompatibleError(CommError):
    """A peer of another plan, model, world size or protocol version."""

    exit_status = 16
    code = "incompatible"


_BY_CODE: dict[str, type[TpiError]] = {
    cls.code: cls for cls in (*TpiError.__subclasses__(), *CommError.__subclasses__())
}


def error_from_code(code: str, message: str) -> TpiError:
    """Rebuild the error that a peer reported by its `code` word."""
    return _BY_CODE.get(code, TpiError)(message)


@contextmanager
def map_errors(mapping: Mapping[type[Exception], type[TpiError]], where: str) -> Iterator[None]:
    """Turn operating-system errors into ours; the first matching key decides.

    `where` opens the message: what was being done, to what.
    """
    try:
        yield
    except tuple(mapping) as exc:
        for source, target in mapping.items():
            if isinstance(exc, source):
                raise target(f"{where}: {exc}") from exc
        raise
