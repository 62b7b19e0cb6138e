"""What devices and links were, in words: the undilated figures behind a testbed's names.

Names alone would mislead where an option or an experiment changed a page of `conf/`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tpi.units import format_bytes


def device_words(limits: Sequence[Mapping[str, Any]], dilation: float) -> str:
    """Memory and disk rate of devices; empty where neither is limited.

    Args:
        limits: Of each device as enforced: `memory` in bytes, `read_bps` in bytes a second.
        dilation: By which the rates were divided.
    """
    words = [
        _range([each.get("memory") for each in limits], format_bytes),
        _range(
            [each.get("read_bps") for each in limits],
            lambda rate_bps: f"{rate_bps * dilation / 1e6:.4g} MB/s",
            "disk ",
        ),
    ]
    return ", ".join(word for word in words if word)


def link_words(links: Sequence[Mapping[str, Any]], dilation: float) -> str:
    """Delay to the core, rate and loss of links.

    Args:
        links: Of each device as emulated: `delay_s`, `rate_bps` (none or 0: no limit), `loss_frac`.
        dilation: By which delays were multiplied and rates divided.
    """
    words = [
        _range([each["delay_s"] for each in links], lambda s: f"{s / dilation * 1e3:.3g} ms"),
        _range(
            [each["rate_bps"] for each in links], lambda bps: f"{bps * dilation / 1e6:.4g} Mbit/s"
        )
        or "any rate",
    ]
    if any(each["loss_frac"] for each in links):
        words.append(_range([each["loss_frac"] for each in links], "{:.2%}".format, "loss "))
    return ", ".join(word for word in words if word)


def _range(values: Sequence[Any], in_words: Callable[[Any], str], what: str = "") -> str:
    """One value where all are the same; empty where none is set."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    low, high = in_words(min(known)), in_words(max(known))
    text = low if low == high else f"{low} to {high}"
    return what + text + ("" if len(known) == len(values) else " or unlimited")
