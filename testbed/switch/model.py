"""What the switch emulates, without any I/O: frames in at a time, frames out at due times.

A frame from port i to port j is serialised at i's rate behind what i sent before, travels i's and
j's delay, and is serialised once more at j's rate behind all that came to j before it. A link that
has `queue_bytes` waiting (the packet being sent among them) drops what comes; an idle one takes any
packet. Loss and duplication happen on each link; a lost packet took its time on the link. Two
frames of one port to one other never overtake each other. Bytes are those of the IP packet: the
frame without its 14 bytes of Ethernet header.

All due times are computed from arrival times in ns, never from the time of the computation, so that
the lateness of a slow process does not add up. `switch.c` does the same with the same random
numbers, so that one test can check both.
"""

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

ETHERNET_BYTES = 14
PPM = 1_000_000
# Of all frames under way, with what each costs to keep; more are dropped at the up-link.
MAX_HELD_BYTES = 256 << 20
_FRAME_COST_BYTES = 120
_LATE_BUCKETS = 20_000
_ADDRESS_PREFIX = b"\x02\0\0\0"
_BITS_NS = 8_000_000_000


@dataclass(frozen=True, slots=True)
class PortSpec:
    """One port as the command line gives it; a rate of 0 is unlimited."""

    name: str
    delay_ns: int
    rate_bps: int
    queue_bytes: int
    loss_ppm: int


@dataclass(slots=True)
class Counters:
    """What went through one direction of a port; `dropped` for want of room, `lost` by chance."""

    bytes: int = 0
    packets: int = 0
    dropped: int = 0
    lost: int = 0
    queue_max: int = 0


@dataclass(slots=True)
class Faults:
    """What is wrong with a port at the moment; with a `drop_ppm` of -1 its loss is as specified."""

    cut: int = 0
    extra_ns: int = 0
    drop_ppm: int = -1
    duplicate_ppm: int = 0


class Random:
    """splitmix64: a few lines in any language, and good enough to toss coins."""

    def __init__(self, seed: int) -> None:
        self._state = seed

    def happens(self, ppm: int) -> bool:
        """Toss a coin; none is tossed where the answer is certain."""
        if not 0 < ppm < PPM:
            return ppm >= PPM
        mask = (1 << 64) - 1
        self._state = (self._state + 0x9E3779B97F4A7C15) & mask
        z = self._state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return (z ^ (z >> 31)) % PPM < ppm


class Line:
    """One direction of a link: a bounded queue before a sender of constant rate."""

    __slots__ = ("counters", "free_ns", "queue_bytes", "rate_bps")

    def __init__(self, spec: PortSpec) -> None:
        self.rate_bps = spec.rate_bps
        self.queue_bytes = spec.queue_bytes
        self.free_ns = 0
        self.counters = Counters()

    def serialise_ns(self, num_bytes: int) -> int:
        """How long a packet takes to be sent."""
        return num_bytes * _BITS_NS // self.rate_bps if self.rate_bps else 0

    def admit(self, num_bytes: int, now_ns: int) -> bool:
        """Take a packet, which moves `free_ns` to when it is sent, or drop it."""
        waiting = 0
        if self.free_ns > now_ns:
            waiting = (self.free_ns - now_ns) * self.rate_bps // _BITS_NS
        if waiting and waiting + num_bytes > self.queue_bytes:
            self.counters.dropped += 1
            return False
        self.free_ns = max(self.free_ns, now_ns) + self.serialise_ns(num_bytes)
        if self.rate_bps:
            self.counters.queue_max = max(self.counters.queue_max, waiting + num_bytes)
        return True


@dataclass(slots=True)
class Port:
    """A port's two lines and the frames on their way to it."""

    spec: PortSpec
    up: Line = field(init=False)
    down: Line = field(init=False)
    faults: Faults = field(default_factory=Faults)
    # (when it comes to the down-link, sequence number, frame), a heap
    under_way: list[tuple[int, int, bytes]] = field(default_factory=list)
    # (when it is through the down-link, frame)
    queue: deque[tuple[int, bytes]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.up, self.down = Line(self.spec), Line(self.spec)

    @property
    def delay_ns(self) -> int:
        """One way, with what a fault adds."""
        return self.spec.delay_ns + self.faults.extra_ns

    @property
    def loss_ppm(self) -> int:
        """As specified, or as a fault has it."""
        return self.spec.loss_ppm if self.faults.drop_ppm < 0 else self.faults.drop_ppm

    def due_ns(self) -> int | None:
        """When the next frame is to be delivered, if none comes before it."""
        if self.queue:
            return self.queue[0][0]
        if not self.under_way:
            return None
        at_ns, _, frame = self.under_way[0]
        sent_ns = self.down.serialise_ns(len(frame) - ETHERNET_BYTES)
        return max(at_ns, self.down.free_ns) + sent_ns


class Lateness:
    """A histogram with buckets of 1 us of how late frames were delivered."""

    def __init__(self) -> None:
        self._buckets = [0] * (_LATE_BUCKETS + 1)
        self.count = 0
        self.max_us = 0

    def add(self, late_us: int) -> None:
        """One frame more."""
        self._buckets[min(late_us, _LATE_BUCKETS)] += 1
        self.count += 1
        self.max_us = max(self.max_us, late_us)

    def share(self, share: float) -> int:
        """The lateness in us that this share of the frames does not exceed."""
        below = 0
        for late_us, count in enumerate(self._buckets[:-1]):
            below += count
            if self.count and below >= share * self.count:
                return late_us
        return self.max_us


def destination(frame: bytes, num_ports: int) -> int | None:
    """The port in a frame's address 02:00:00:00:HH:LL, HHLL = port + 1; -1 is all, None is none."""
    if frame[0] & 1:
        return -1
    number = int.from_bytes(frame[4:6], "big")
    known = frame[:4] == _ADDRESS_PREFIX and 0 < number <= num_ports
    return number - 1 if known else None


class Switch:
    """All ports, joined."""

    def __init__(self, specs: list[PortSpec], seed: int = 0) -> None:
        self.ports = [Port(spec) for spec in specs]
        self.late = Lateness()
        self._random = Random(seed)
        self._held_bytes = 0
        self._seq = 0
        self._last_ns: dict[tuple[int, int], int] = {}

    def receive(self, src: int, frame: bytes, now_ns: int) -> None:
        """A frame has come from the device at port `src`."""
        port = self.ports[src]
        if port.faults.cut:
            port.up.counters.lost += 1
            return
        num_bytes = len(frame) - ETHERNET_BYTES
        dst = destination(frame, len(self.ports)) if num_bytes >= 0 else None
        if dst is None or dst == src or self._held_bytes > MAX_HELD_BYTES:
            port.up.counters.dropped += 1
            return
        if not port.up.admit(num_bytes, now_ns):
            return
        port.up.counters.packets += 1
        port.up.counters.bytes += num_bytes
        if self._random.happens(port.loss_ppm):
            port.up.counters.lost += 1
            return
        everyone = range(len(self.ports)) if dst < 0 else (dst,)
        for _ in range(1 + self._random.happens(port.faults.duplicate_ppm)):
            for i in everyone:
                if i != src:
                    self._send(src, i, frame, port.up.free_ns + port.delay_ns)

    def _send(self, src: int, dst: int, frame: bytes, core_ns: int) -> None:
        at_ns = max(self._last_ns.get((src, dst), 0), core_ns + self.ports[dst].delay_ns)
        self._last_ns[src, dst] = at_ns
        self._held_bytes += len(frame) + _FRAME_COST_BYTES
        heapq.heappush(self.ports[dst].under_way, (at_ns, self._seq, frame))
        self._seq += 1

    def due(self, now_ns: int) -> tuple[int, int] | None:
        """The time and port of the earliest delivery that is known of; None for none."""
        first: tuple[int, int] | None = None
        for index, port in enumerate(self.ports):
            if port.under_way:
                self._arrive(port, now_ns)
            due_ns = port.due_ns()
            if due_ns is not None and (first is None or due_ns < first[0]):
                first = (due_ns, index)
        return first

    def _arrive(self, port: Port, now_ns: int) -> None:
        """Move what has come to the down-link into its queue; later ones cannot change it."""
        while port.under_way and port.under_way[0][0] <= now_ns:
            at_ns, _, frame = heapq.heappop(port.under_way)
            copies = 1 + self._random.happens(port.faults.duplicate_ppm)
            self._held_bytes += (copies - 1) * (len(frame) + _FRAME_COST_BYTES)
            for _ in range(copies):
                self._into_down_link(port, frame, at_ns)

    def _into_down_link(self, port: Port, frame: bytes, at_ns: int) -> None:
        admitted = port.down.admit(len(frame) - ETHERNET_BYTES, at_ns)
        if admitted and not self._random.happens(port.loss_ppm):
            port.queue.append((port.down.free_ns, frame))
            return
        port.down.counters.lost += admitted
        self._held_bytes -= len(frame) + _FRAME_COST_BYTES

    def deliver(self, index: int, now_ns: int, write: Callable[[bytes], bool]) -> None:
        """Give a device its next frame, if that is due; lost if cut, or `write` gives False."""
        port = self.ports[index]
        if not port.queue or port.queue[0][0] > now_ns:
            return
        due_ns, frame = port.queue.popleft()
        self._held_bytes -= len(frame) + _FRAME_COST_BYTES
        if port.faults.cut or not write(frame):
            port.down.counters.lost += 1
            return
        self.late.add((now_ns - due_ns) // 1000)
        port.down.counters.packets += 1
        port.down.counters.bytes += len(frame) - ETHERNET_BYTES
