"""Faults of a link that can be made at a given moment, and the range of each."""

from typing import Final, Literal, get_args

from tpi.errors import ConfigError

FaultKind = Literal["cut", "delay", "drop", "duplicate"]
KINDS: Final[tuple[str, ...]] = get_args(FaultKind)
# Ends a `drop`: the link again has the loss that it was made with.
AS_SPECIFIED = -1.0
_MOST_DELAY_S = 1000.0


def check_fault(kind: str, value: float) -> None:
    """Refuse a fault that does not exist with a ConfigError.

    `cut`: 1 nothing passes, 0 again as before. `delay`: seconds more, one way. `drop`: share lost
    instead of the link's own; `AS_SPECIFIED` restores that. `duplicate`: share that comes twice.
    """
    if kind not in KINDS:
        raise ConfigError(f"link fault: got {kind!r}, expected one of {', '.join(KINDS)}")
    most = _MOST_DELAY_S if kind == "delay" else 1.0
    is_whole = kind != "cut" or value in (0.0, 1.0)
    if not ((0.0 <= value <= most and is_whole) or (kind == "drop" and value == AS_SPECIFIED)):
        raise ConfigError(f"link fault {kind}: got {value:g}, expected 0 to {most:g}")
