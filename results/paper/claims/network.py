"""Rules of the claims about the allreduce: which algorithm is fastest, what bounds it.

The cells are those of figure 3: rows are milliseconds of one link, four of which lie between any
two devices. Every rule takes a `View` of one kind of evidence and gives `Item`s.
"""

from collections.abc import Sequence

from results.paper.cell import Place
from results.paper.cells.allreduce import LINKS_MS
from results.paper.claims.evidence import MEASURED, OURS, PUBLISHED, REPORTED, View
from results.paper.claims.verdict import (
    UNDECIDED,
    Item,
    at_least,
    at_most,
    in_times,
    item_of,
    percent,
    point,
    within,
    worst,
)
from results.records.schema import Spread
from tpi.comm.allreduces.registry import PAPER_ALLREDUCES, find_allreduce
from tpi.comm.allreduces.star import Star
from tpi.units import format_seconds

HOPS, DEVICES, RATE_BPS = 4, 8, 300e6  # Klonet, sections 4 and A.7
SMALL, LARGE = 4, 32 << 10  # bytes: figure 3, and the hidden state of a 70B model in float32
KLONET_MS = "1"
# 2 for the tree and 7 for the ring: 16 and 56 links to the star's 8.
RATIOS = {
    name: find_allreduce(name).published_traversals(DEVICES) / Star().published_traversals(DEVICES)
    for name in PAPER_ALLREDUCES
    if name != Star.name
}
# What `source` says of a payload, by kind of evidence.
_SOURCES = {
    (MEASURED, SMALL): "4 bytes", (MEASURED, LARGE): "32 KiB",
    (OURS, SMALL): "ours", (OURS, LARGE): "ours: 32 KiB",
    (PUBLISHED, SMALL): "published: hops",
}  # fmt: skip
# Section 3.2 of the paper, of a 70B model at 300 Mbit/s.
_REPORTED_DATA_S = 3.4e-3


def allreduce_place(row: str, algorithm: str) -> Place:
    """Where an allreduce's time stands."""
    return Place("figure3", row, algorithm, "allreduce_s")


def star_is_first(view: View) -> list[Item]:
    """Whether star < tree < ring for the small payload at every link latency above 0."""
    return [_ordered(view, row) for row in _rows(view)]


def _ordered(view: View, row: str) -> Item:
    label, is_the_papers = f"{row} ms a link", row in LINKS_MS
    ratios = [_ratio(view, row, *pair) for pair in (("tree", "star"), ("ring", "tree"))]
    known = [ratio for ratio in ratios if ratio is not None]
    if len(known) < len(ratios):
        return Item(label, UNDECIDED if is_the_papers else "", reason=_missing(view, row))
    verdict = worst([at_least(ratio, 1 + 1e-9) for ratio in known])
    figure = f"tree {in_times(known[0])} the star, ring {in_times(known[1])} the tree"
    reason = "the intervals of two overlap" if verdict == UNDECIDED else ""
    return Item(label, verdict if is_the_papers else "", figure, reason)


def ratio_of_links(view: View, tolerance: float) -> list[Item]:
    """Whether tree and ring take 2 and 7 times as long as the star, from 1 ms a link on."""
    rows = [row for row in _rows(view) if float(row) >= float(KLONET_MS)]
    return [_to_star(view, row, name, tolerance) for row in rows for name in RATIOS]


def _to_star(view: View, row: str, algorithm: str, tolerance: float) -> Item:
    paper = RATIOS[algorithm]
    return item_of(
        f"{row} ms a link, {algorithm}",
        _ratio(view, row, algorithm, "star"),
        lambda ratio: within(ratio, paper * (1 - tolerance), paper * (1 + tolerance)),
        lambda ratio: f"{in_times(ratio)} the star, the paper has {paper:g}",
        _missing(view, row),
        "the tolerance's end",
    )


def latency_bounds(view: View) -> list[Item]:
    """Whether the payload is at most half of the star's time at the paper's link latency alone."""
    if view.kind == REPORTED:
        links_s = Star().published_link_s(hop_s=float(KLONET_MS) / 1e3)
        share = _REPORTED_DATA_S / (_REPORTED_DATA_S + links_s)
        words = f"{format_seconds(_REPORTED_DATA_S)} of data (section 3.2)"
        figure = f"payload {percent(share)}: {words}, {format_seconds(links_s)} of links"
        return [Item("1 ms a link", at_most(point(share, 0), 0.5), figure)]
    if (view.kind, LARGE) not in _SOURCES:
        seen = view.look(allreduce_place(KLONET_MS, "star"))
        return [Item("figure 3", UNDECIDED, reason=seen.reason or "no number of this kind")]
    rows = dict.fromkeys([KLONET_MS, *view.rows("figure3")])
    items = [_payload(view, row, decides=row == KLONET_MS) for row in rows]
    shown = [item for item in items if item.figure or item.verdict]
    return [*shown, *([_crossing()] if view.kind == OURS else [])]


def _payload(view: View, row: str, *, decides: bool) -> Item:
    label = f"{row} ms a link"
    place = allreduce_place(row, "star")
    small, large = (view.value(place, _SOURCES[view.kind, size]) for size in (SMALL, LARGE))
    if small is None or large is None:
        reason = f"needs a star of 4 bytes and one of 32 KiB: {_missing(view, row, ('star',))}"
        return Item(label, UNDECIDED if decides else "", reason=reason)
    share = Spread(
        1 - small.median / large.median, 1 - small.high / large.low, 1 - small.low / large.high,
        large.n,
    )  # fmt: skip
    verdict = at_most(share, 0.5) if decides else ""
    figure = (
        f"payload {percent(share.median)} of {format_seconds(large.median)}, "
        f"which is {format_seconds(small.median)} with 4 bytes"
    )
    return Item(label, verdict, figure, "the interval holds 50 %" if verdict == UNDECIDED else "")


def crossing_delay_s(num_bytes: int = LARGE, rate_bps: float = RATE_BPS) -> float:
    """One-way delay between two devices at which 2 (N - 1) payloads cost as much as the links."""
    cost = Star().cost_s(world_size=DEVICES, num_bytes=num_bytes, delay_s=0.0, rate_bps=rate_bps)
    return cost / 2


def _crossing() -> Item:
    """Where the proof stops being true, since it leaves out the port that payloads share."""
    payloads_s = 2 * crossing_delay_s()
    chained_s = Star().chained_s(
        world_size=DEVICES, num_bytes=LARGE, delay_s=0.0, rate_bps=RATE_BPS
    )
    links = [format_seconds(each / 2 / HOPS) for each in (payloads_s, chained_s)]
    figure = (
        f"2 (N - 1) payloads of 32 KiB take {format_seconds(payloads_s)} at the master's port at "
        f"300 Mbit/s, more than the links below {links[0]} each; where one star "
        f"follows another, {format_seconds(chained_s)}, below {links[1]}"
    )
    return Item("computed crossing, 8 devices", figure=figure)


def _rows(view: View) -> list[str]:
    """The figure's link latencies above 0, and others that were measured for all devices."""
    found = set(LINKS_MS)
    if view.kind == MEASURED:  # a study's closed forms may be of fewer devices
        for row in view.rows("figure3"):
            places = [allreduce_place(row, name) for name in PAPER_ALLREDUCES]
            if float(row) > 0 and any(view.value(place, _source(view)) for place in places):
                found.add(row)
    return sorted(found, key=float)


def _source(view: View) -> str:
    return _SOURCES.get((view.kind, SMALL), "")


def _ratio(view: View, row: str, above: str, below: str) -> Spread | None:
    return view.ratio(allreduce_place(row, above), allreduce_place(row, below), _source(view))


def _missing(view: View, row: str, names: Sequence[str] = PAPER_ALLREDUCES) -> str:
    seen = {name: view.look(allreduce_place(row, name), _source(view)) for name in names}
    reasons = [f"{name} {s.reason}" for name, s in seen.items() if not s.has_value]
    return ", ".join(reasons) or "32 KiB not run"
