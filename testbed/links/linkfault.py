"""Faults of a link that can be made at a given moment, and the range of each."""

import math
from typing import Final, Literal, get_args

from tpi.errors import ConfigError

FaultKind = Literal["cut", "delay", "drop", "duplicate"]
KINDS: Final[tuple[str, ...]] = get_args(FaultKind)
# What ends a `drop`: the link loses again what it was told to lose at the start.
AS_SPECIFIED = -1.0
_MOST_DELAY_S = 1000.0


def check_fault(kind: str, value: float) -> None:
    """Refuse a fault that does not exist.

    Args:
        kind: `cut` (1 nothing passes, 0 again as before), `delay` (seconds more, one way), `drop`
            (share lost instead of the link's own; `AS_SPECIFIED` restores that), `duplicate`
            (share that comes twice).
        value: As said.

    Raises:
        ConfigError: Unknown kind, or a value out of range.
    """
    low, high = {
        "cut": (0.0, 1.0),
        "delay": (0.0, _MOST_DELAY_S),
        "drop": (0.0, 1.0),
        "duplicate": (0.0, 1.0),
    }.get(kind, (math.nan, math.nan))
    if math.isnan(low):
        raise ConfigError(f"link fault: got {kind!r}, expected one of {', '.join(KINDS)}")
    is_choice = kind != "cut" or value in (0.0, 1.0)
    if not ((low <= value <= high and is_choice) or (kind == "drop" and value == AS_SPECIFIED)):
        raise ConfigError(f"link fault {kind}: got {value:g}, expected {low:g} to {high:g}")
