"""Messages on links: when a rank has one to send, and when its receiver has it. Vectors over ranks.

All times are whole nanoseconds, so that a situation that comes again is the same to the last bit.
A message is cut into packets that wait, first come first served, at the sender's up-link and the
receiver's down-link; both stay busy from one message to the next. A processor's work for messages
(`send_s`, `recv_s`, `packet_s` of the calibration) is done one after another.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from testbed.links.link import HEADER_BYTES, MSS_BYTES, MTU_BYTES, LinkSpec
from testbed.sim.calibration import Calibration
from tpi.comm.wire import HEADER_BYTES as FRAME_BYTES

Ints = NDArray[np.int64]
SECOND = 1e9  # nanoseconds


def drain(at: Ints, service: Ints | int, free: Ints | int) -> Ints:
    """When each of a queue's customers is through; they come in this order, along the last axis.

    f_k = max(f_(k-1), at_k) + service_k, with f_(-1) = free.
    """
    spent = np.cumsum(np.broadcast_to(service, at.shape), axis=-1)
    begin = at - (spent - service)
    begin = np.maximum.accumulate(begin, axis=-1)
    free_at = free if isinstance(free, int) else np.expand_dims(free, -1)
    return np.asarray(np.maximum(begin, free_at) + spent, dtype=np.int64)


def merge(first: Ints, last: Ints, whole: Ints, final: Ints, free: Ints) -> tuple[Ints, Ints]:
    """When a down-link is through with messages whose packets come to it mixed.

    Along the last axis, the packets of a message come evenly from `first` to `last`; all of them
    take the link `whole`, the last one takes `final`; the link is free from `free` on. Gives when
    each is through, in that order, and which message that is.
    """
    count = first.shape[-1]
    # Rounding must not depend on how late it is.
    base = np.minimum(first.min(axis=-1, keepdims=True), free[..., None])
    span = last - first
    steady = np.where(span > 0, whole - final, 0)
    rate = steady / np.maximum(span, 1)
    at = np.concatenate((first, last), axis=-1) - base
    order = np.argsort(at, axis=-1, kind="stable")
    at = np.take_along_axis(at, order, axis=-1)
    change = np.take_along_axis(np.concatenate((rate, -rate), axis=-1), order, axis=-1)
    jumps = np.concatenate((np.zeros_like(whole), whole - steady), axis=-1)
    jump = np.take_along_axis(jumps, order, axis=-1)
    # Work that has come before each of these moments, and after it.
    flow = np.cumsum(change, axis=-1)[..., :-1] * np.diff(at, axis=-1)
    before = np.concatenate((np.zeros_like(base, dtype=np.float64), np.cumsum(flow, axis=-1)), -1)
    before += np.cumsum(jump, axis=-1) - jump
    busy = np.maximum.accumulate(at - before, axis=-1)
    through = before + jump + np.maximum(busy, free[..., None] - base)
    ends = order >= count
    shape = first.shape
    here = np.rint(through[ends].reshape(shape)).astype(np.int64) + base
    return here, order[ends].reshape(shape) - count


@dataclass(frozen=True, slots=True)
class Message:
    """Costs of one size of message, by rank; nanoseconds.

    Attributes:
        whole: Of its link; `first` and `last` are those packets alone.
        send: Of its processor to send it; `recv` to receive it, `add` to add it to a sum.
    """

    num_bytes: int
    whole: Ints
    first: Ints
    last: Ints
    send: Ints
    recv: Ints
    add: Ints


@dataclass(frozen=True, slots=True)
class Frames:
    """How frames of some payloads go over a link: packets, and IP bytes of all, first and last."""

    payload: Ints
    packets: Ints
    whole: Ints
    first: Ints
    last: Ints

    @classmethod
    def of(cls, payload: Ints) -> "Frames":
        """Frames with so many bytes behind their headers."""
        num_bytes = payload + FRAME_BYTES
        packets = -(-num_bytes // MSS_BYTES)
        whole = num_bytes + HEADER_BYTES * packets
        first = np.minimum(num_bytes, MSS_BYTES) + HEADER_BYTES
        return cls(payload, packets, whole, first, whole - (packets - 1) * MTU_BYTES)


class Network:
    """The links and processors of all ranks, and how long each link is still busy.

    Attributes:
        up: By rank, until when its up-link is busy; `down` is for the down-link.
        messages: Frames that each rank has sent; `num_bytes` with their headers.
    """

    def __init__(
        self, links: Sequence[LinkSpec], cores: Sequence[float], calibration: Calibration
    ) -> None:
        size = len(links)
        self.size = size
        self._calibration = calibration
        self._cores = np.array(cores, dtype=np.float64)
        self.delay: Ints = as_ns(np.array([x.delay_s for x in links]))
        self._byte_s = np.array([8 / x.rate_bps if x.rate_bps else 0.0 for x in links])
        self.up: Ints = np.zeros(size, dtype=np.int64)
        self.down: Ints = np.zeros(size, dtype=np.int64)
        self.messages: Ints = np.zeros(size, dtype=np.int64)
        self.num_bytes: Ints = np.zeros(size, dtype=np.int64)
        self._sizes: dict[int, Message] = {}

    def message(self, payload_bytes: int) -> Message:
        """A frame with so many bytes behind its header."""
        if payload_bytes not in self._sizes:
            self._sizes[payload_bytes] = self._message(payload_bytes)
        return self._sizes[payload_bytes]

    def _message(self, payload_bytes: int) -> Message:
        ranks = np.arange(self.size)
        frames = Frames.of(np.full(self.size, payload_bytes))
        return Message(
            payload_bytes + FRAME_BYTES,
            whole=self.link_ns(frames.whole, ranks),
            first=self.link_ns(frames.first, ranks),
            last=self.link_ns(frames.last, ranks),
            send=self.send_ns(frames, ranks),
            recv=self.recv_ns(frames, ranks),
            add=self.add_ns(frames, ranks),
        )

    def link_ns(self, ip_bytes: Ints, ranks: Ints) -> Ints:
        """Time of these ranks' links for so many bytes each."""
        return as_ns(ip_bytes * self._byte_s[ranks])

    def send_ns(self, frames: "Frames", ranks: Ints) -> Ints:
        """Time of these ranks' processors to send a frame each."""
        costs = self._calibration
        return as_ns((costs.send_s + frames.packets * costs.packet_s) / self._cores[ranks])

    def recv_ns(self, frames: "Frames", ranks: Ints) -> Ints:
        """To receive it."""
        costs = self._calibration
        return as_ns((costs.recv_s + frames.packets * costs.packet_s) / self._cores[ranks])

    def add_ns(self, frames: "Frames", ranks: Ints) -> Ints:
        """To add it to a sum."""
        return as_ns(frames.payload / self._calibration.sum_bps / self._cores[ranks])

    def gather(
        self, now: Ints, sources: Ints, target: int, message: Message, *, adds: bool = True
    ) -> None:
        """All sources send a message to the target, which works on each as it comes.

        `now` has every rank's clock, and is moved on: a source's to when it has handed its message
        to the kernel, the target's to when it is through with the last.
        """
        sent = now[sources] + message.send[sources]
        begin = np.maximum(self.up[sources], sent)
        self.up[sources] = end = begin + message.whole[sources]
        path = self.delay[sources] + self.delay[target]
        here, _ = merge(
            begin + message.first[sources] + path,
            end + path,
            np.full(len(sources), message.whole[target]),
            np.full(len(sources), message.last[target]),
            self.down[target],
        )
        self.down[target] = here[-1]
        work = int(message.recv[target]) + adds * int(message.add[target])
        now[sources] = sent
        now[target] = drain(here, work, int(now[target]))[-1]
        self.messages[sources] += 1
        self.num_bytes[sources] += message.num_bytes

    def scatter(self, now: Ints, source: int, targets: Ints, message: Message) -> None:
        """The source sends a message to each target, one after another; clocks as in `gather`."""
        sent = now[source] + int(message.send[source]) * np.arange(1, len(targets) + 1)
        whole = int(message.whole[source])
        end = drain(sent, whole, int(self.up[source]))
        self.up[source] = end[-1]
        down, path = message.whole[targets], self.delay[source] + self.delay[targets]
        at = np.maximum(
            end - whole + int(message.first[source]), end + message.last[targets] - down
        )
        here = np.maximum(at + path, self.down[targets]) + down
        self.down[targets] = here
        now[source] = sent[-1]
        now[targets] = np.maximum(here, now[targets]) + message.recv[targets]
        self.messages[source] += len(targets)
        self.num_bytes[source] += len(targets) * message.num_bytes


def as_ns(seconds: NDArray[np.float64]) -> Ints:
    """Whole nanoseconds."""
    return np.asarray(np.rint(seconds * SECOND), dtype=np.int64)
