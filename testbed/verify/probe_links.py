"""Round trips and rates of all workers to the master, measured by the agents of a probe.

All workers ping at once but in turns, so that none waits for another on this host's cores; then one
after the other sends a bulk of data, no more than the queues of its path hold. Read `probe_links`
first.
"""

import statistics
import time
from collections.abc import Mapping, Sequence
from functools import partial

from testbed.links.link import MSS_BYTES, LinkSpec
from testbed.verify.probe_agents import ANSWER_S, Agents
from testbed.verify.tolerances import (
    Expected,
    Figure,
    expected_goodput_bps,
    expected_rtt_s,
    judge,
    measured_twice,
    path_loss,
    rtt_band_s,
)

_MASTER = 0
_LEAD_S = 0.05
_PINGS, _LEAST_PINGS, _LONG_RTT_S = 12, 8, 0.02
# Between two pings of different workers; the rest of a round trip is spare.
_PING_SLOT_S, _PING_SPARE = 0.002, 1.25
# Before the first measured ping: connecting and two pings, and one in reserve.
_PING_LEAD_RTTS = 4
# Half of a median of so many pings must come through without a loss.
_MOST_LOSS = 0.1
# A window that doubles every round trip fills the link after about two of its delay's worth.
_WARM_BDPS, _WARM_BYTES, _BULK_S, _MIN_SEGMENTS = 3, 64 << 10, 0.1, 4
_UNLIMITED_BYTES = 16 << 20
# In slow start at most half of what was sent is under way, so twice the queue cannot overflow it.
_QUEUE_SHARE, _MOST_WARM = 1.6, 0.75
# Connecting, slow start and a few losses.
_PATIENCE_RTTS = 30


def probe_links(
    agents: Agents, address: str, expected: Sequence[Expected], dilation: float
) -> list[Figure]:
    """Measure all workers' links to the master, which listens at `address` meanwhile."""
    workers = range(1, len(agents))
    (served,) = agents.ask({_MASTER: {"do": "serve", "address": address}}, ANSWER_S)
    if served.event != "serve":
        why = f"the master does not listen: {served.error}"
        return [judge(i, "rtt_s", _rtt_s(expected, i), None, why=why) for i in workers]
    where = {"address": address, "port": served.port}
    figures = measured_twice(lambda: _pings(agents, where, expected, dilation))
    for worker in workers:
        figures += measured_twice(partial(_rate, agents, where, expected, worker))
    return figures


def bulk_sizes(link: LinkSpec, master: LinkSpec, rtt_s: float) -> tuple[int, int, bool]:
    """Bytes to send before and within the measured part, and whether that will fill the link.

    What is measured comes when the window has grown to fill the link, and takes a tenth of a
    second; less where a queue might overflow, for that would be a loss.
    """
    rate_bps = expected_goodput_bps(link, master)
    most = int(_QUEUE_SHARE * min(link.queue_bytes, master.queue_bytes))
    if rate_bps is None:
        half = min(_UNLIMITED_BYTES, most) // 2
        return half, half, True
    bulk = max(_MIN_SEGMENTS * MSS_BYTES, int(_BULK_S * rate_bps / 8))
    warm = int(_WARM_BDPS * rate_bps * rtt_s / 8) + min(_WARM_BYTES, bulk)
    if warm > _MOST_WARM * most:
        half = max(_MIN_SEGMENTS * MSS_BYTES, most // 2)
        return half, half, False
    return warm, min(bulk, most - warm), True


def _pings(
    agents: Agents, where: Mapping[str, object], expected: Sequence[Expected], dilation: float
) -> list[Figure]:
    workers = range(1, len(agents))
    rtts_s = [_rtt_s(expected, i) for i in workers]
    longest_s = max(rtts_s)
    every_s = max(_PING_SLOT_S * len(workers), _PING_SPARE * longest_s)
    count = _PINGS if longest_s < _LONG_RTT_S else _LEAST_PINGS
    start_s = time.monotonic() + _LEAD_S + _PING_LEAD_RTTS * longest_s
    timeout_s = ANSWER_S + _PATIENCE_RTTS * longest_s
    ping = {"do": "ping", **where, "every_s": every_s, "count": count, "timeout_s": timeout_s}
    commands = {
        i: {**ping, "at_ns": int((start_s + every_s * (i - 1) / len(workers)) * 1e9)}
        for i in workers
    }
    answers = agents.ask(commands, timeout_s + count * every_s)
    figures = []
    for i, rtt_s, answer in zip(workers, rtts_s, answers, strict=True):
        loss = path_loss(expected[i].link, expected[_MASTER].link)
        wanted = rtt_s if loss < _MOST_LOSS else None
        measured = None if answer.rtts_s is None else statistics.median(answer.rtts_s)
        band = rtt_band_s(rtt_s, dilation)
        figures.append(judge(i, "rtt_s", wanted, measured, band=band, why=answer.error))
    return figures


def _rate(
    agents: Agents, where: Mapping[str, object], expected: Sequence[Expected], worker: int
) -> list[Figure]:
    link, master = expected[worker].link, expected[_MASTER].link
    wanted, rtt_s = expected_goodput_bps(link, master), _rtt_s(expected, worker)
    warm, measured, is_filled = bulk_sizes(link, master, rtt_s)
    wire_s = 0.0 if wanted is None else 8 * (warm + measured) / wanted
    timeout_s = ANSWER_S + _PATIENCE_RTTS * rtt_s + 2 * wire_s
    sizes = {"warm_bytes": warm, "bytes": measured}
    command = {"do": "send", **where, **sizes, "timeout_s": timeout_s}
    # The agent's own deadline, a socket's, begins anew with every piece.
    (answer,) = agents.ask({worker: command}, 2 * timeout_s)
    # TCP does not fill a link that loses packets, by chance or for want of room.
    is_upper = path_loss(link, master) > 0 or not is_filled
    return [judge(worker, "rate_bps", wanted, answer.rate_bps, why=answer.error, is_upper=is_upper)]


def _rtt_s(expected: Sequence[Expected], worker: int) -> float:
    return expected_rtt_s(expected[worker].link, expected[_MASTER].link)
