"""A device's link to the core of the emulated network, and how long transfers should take. Pure.

The core joins all links: a packet from device i to device j waits in i's up-link queue, is
serialised at i's rate, travels i's one-way delay to the core, travels j's one-way delay, waits in
j's down-link queue and is serialised at j's rate (store and forward). Up-link and down-link of a
device are serialised separately. Rates count IP bytes (MTU 1500).

The times below are for warm TCP connections with timestamps: the window has room for the whole
payload (a fresh one has 10 segments, 14,480 bytes, and waits a round trip for more), nothing is
lost, and acknowledgements, which are small and run the other way, cost nothing. Only packets and
links count; the time of the devices' own processors comes on top.
"""

from dataclasses import dataclass

MTU_BYTES = 1500
# IPv4 20, TCP 20, timestamps 12.
HEADER_BYTES = 52
MSS_BYTES = MTU_BYTES - HEADER_BYTES


@dataclass(frozen=True, slots=True)
class LinkSpec:
    """One device's link, as it is emulated on this host (already dilated).

    Attributes:
        delay_s: One way, device to core and core to device alike.
        rate_bps: Bits of IP packets per second, each way; None for no limit.
        loss_frac: Share of packets lost, each way, 0 <= loss_frac < 1.
        queue_bytes: Bytes that may wait at each port, each way; more are dropped.
    """

    delay_s: float = 0.0
    rate_bps: float | None = None
    loss_frac: float = 0.0
    queue_bytes: int = 1 << 20

    def dilated(self, dilation: float) -> "LinkSpec":
        """The same link `dilation` times slower; the queue drains in as many packets."""
        rate = None if self.rate_bps is None else self.rate_bps / dilation
        return LinkSpec(self.delay_s * dilation, rate, self.loss_frac, self.queue_bytes)


def num_packets(payload_bytes: int) -> int:
    """Packets of a TCP payload that is sent at once: ceil(payload / 1448)."""
    return -(-payload_bytes // MSS_BYTES)


def wire_bytes(payload_bytes: int) -> int:
    """IP bytes of a TCP payload: payload + 52 ceil(payload / 1448)."""
    return payload_bytes + HEADER_BYTES * num_packets(payload_bytes)


def goodput_bps(rate_bps: float) -> float:
    """Payload bits per second of a bulk transfer: rate x 1448 / 1500."""
    return rate_bps * MSS_BYTES / MTU_BYTES


def serialise_s(ip_bytes: int, link: LinkSpec) -> float:
    """Time a link takes to send so many IP bytes."""
    return 0.0 if link.rate_bps is None else ip_bytes * 8 / link.rate_bps


def ping_s(ip_bytes: int, a: LinkSpec, b: LinkSpec) -> float:
    """Round trip of one packet each way: 2 (d_a + d_b) + 2 s (1/r_a + 1/r_b)."""
    one_way_s = a.delay_s + b.delay_s + serialise_s(ip_bytes, a) + serialise_s(ip_bytes, b)
    return 2 * one_way_s


def one_way_s(payload_bytes: int, src: LinkSpec, dst: LinkSpec) -> float:
    """First bit sent to last bit received of a payload, its packets pipelined over both links.

    With packets s_1 ... s_n of S bytes in all: d_src + d_dst + max over k of
    (s_1 + ... + s_k) / r_src + (s_k + ... + s_n) / r_dst, where k is 1, n - 1 or n, since all but
    the last are of one size. At equal rates: d_src + d_dst + (S + s_1) / r.
    """
    if payload_bytes <= 0:
        return 0.0
    total, count = wire_bytes(payload_bytes), num_packets(payload_bytes)
    last = total - MTU_BYTES * (count - 1)
    splits = [(total, last)]
    if count > 1:
        splits += [(total - last, MTU_BYTES + last), (MTU_BYTES, total)]
    slowest_s = max(serialise_s(up, src) + serialise_s(down, dst) for up, down in splits)
    return src.delay_s + dst.delay_s + slowest_s
