"""Closed forms of transfers over emulated links that only tests compare with."""

from collections.abc import Iterator, Sequence

from testbed.links.link import HEADER_BYTES, MSS_BYTES, LinkSpec, one_way_s, serialise_s


def ping_pong_s(payload_bytes: int, a: LinkSpec, b: LinkSpec) -> float:
    """A payload there and, once it is there whole, as much back."""
    return one_way_s(payload_bytes, a, b) + one_way_s(payload_bytes, b, a)


def gather_s(payload_bytes: int, workers: Sequence[LinkSpec], master: LinkSpec) -> float:
    """All workers send a payload at once: until the master's down-link has sent the last packet.

    The packets come to the down-link at times a_1 <= ... <= a_m; a queue that never idles while
    something waits ends at the max over k of a_k + (s_k + ... + s_m) / r_master. For N - 1 equal
    workers that together are no slower than the master: d_worker + d_master + s_1 / r_worker +
    (N - 1) S / r_master. Time runs from the send.
    """
    free_s = 0.0
    for at_s, ip_bytes in sorted(p for w in workers for p in _arrivals(payload_bytes, w, master)):
        free_s = max(free_s, at_s) + serialise_s(ip_bytes, master)
    return free_s


def _arrivals(payload_bytes: int, src: LinkSpec, dst: LinkSpec) -> Iterator[tuple[float, int]]:
    """When each packet of a payload comes to the destination's down-link, and its IP bytes."""
    delay_s, sent = src.delay_s + dst.delay_s, 0
    for first in range(0, payload_bytes, MSS_BYTES):
        ip_bytes = min(MSS_BYTES, payload_bytes - first) + HEADER_BYTES
        sent += ip_bytes
        yield delay_s + serialise_s(sent, src), ip_bytes
