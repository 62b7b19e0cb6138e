"""What devices and links were, in words: the undilated values behind a testbed's names.

Names alone would mislead where an option or an experiment changed a page of `conf/`.
"""

from collections.abc import Callable, Sequence

from testbed.limits.limits import DeviceLimits
from testbed.links.link import LinkSpec
from tpi.units import format_bytes


def device_words(limits: Sequence[DeviceLimits], dilation: float) -> str:
    """Memory and disk rate of devices, undilated, in words; empty where neither is limited."""

    def disk(rate_bps: float) -> str:
        return f"{rate_bps * dilation / 1e6:.4g} MB/s"

    words = (
        _range([each.memory for each in limits], format_bytes),
        _range([each.read_bps for each in limits], disk, "disk "),
    )
    return ", ".join(filter(None, words))


def link_words(links: Sequence[LinkSpec], dilation: float) -> str:
    """Delay to the core, rate and loss of links, undilated, in words."""
    words = [
        _range([each.delay_s for each in links], lambda s: f"{s / dilation * 1e3:.3g} ms"),
        _range([each.rate_bps for each in links], lambda bps: f"{bps * dilation / 1e6:.4g} Mbit/s")
        or "any rate",
    ]
    if any(each.loss_frac for each in links):
        words.append(_range([each.loss_frac for each in links], "{:.2%}".format, "loss "))
    return ", ".join(filter(None, words))


def _range(values: Sequence[float | None], in_words: Callable[[float], str], what: str = "") -> str:
    """One value where all are the same; empty where none is set."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    low, high = in_words(min(known)), in_words(max(known))
    text = low if low == high else f"{low} to {high}"
    return what + text + ("" if len(known) == len(values) else " or unlimited")
