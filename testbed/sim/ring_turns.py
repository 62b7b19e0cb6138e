"""Collectives in which every rank sends at once: the turns of a ring, and all pairs.

One call moves all ranks a turn on, so that a ring of 256 ranks takes 510 steps of a few vector
operations each.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from testbed.sim.network import Frames, Ints, Network, drain, merge
from tpi.comm.wire import HEADER_BYTES as FRAME_BYTES


@dataclass(frozen=True, slots=True)
class Turn:
    """Every rank sends to its right neighbour and receives from its left; nanoseconds by rank.

    Attributes:
        left: The rank on the left of each.
        sends: Ranks that send anything, `receives` those that get anything; None if all do.
        send: Of the processor, to send; `work` to receive and add.
        up: Of the up-link; `down` of the down-link.
        first: From the beginning of the left neighbour's sending until its first packet is at the
            down-link; `rest` from its end until the down-link could begin and still end last.
        messages: That each rank sends; `num_bytes` with headers.
    """

    left: Ints
    sends: NDArray[np.bool_] | None
    receives: NDArray[np.bool_] | None
    send: Ints
    up: Ints
    first: Ints
    rest: Ints
    down: Ints
    work: Ints
    messages: Ints
    num_bytes: Ints


def make_turn(network: Network, payload: Ints, *, adds: bool) -> Turn:
    """A turn in which rank r sends `payload[r]` bytes, or nothing where that is 0."""
    ranks = np.arange(network.size)
    left = np.roll(ranks, 1)
    sent, got = Frames.of(payload), Frames.of(payload[left])
    path = network.delay + network.delay[left]
    down = network.link_ns(got.whole, ranks)
    goes = payload > 0
    return Turn(
        left,
        sends=None if goes.all() else goes,
        receives=None if goes.all() else goes[left],
        send=network.send_ns(sent, ranks),
        up=network.link_ns(sent.whole, ranks),
        first=network.link_ns(got.first, left) + path,
        rest=path + network.link_ns(got.last, ranks) - down,
        down=down,
        work=network.recv_ns(got, ranks) + adds * network.add_ns(got, ranks),
        messages=goes.astype(np.int64),
        num_bytes=np.where(goes, payload + FRAME_BYTES, 0),
    )


def run_turn(network: Network, now: Ints, turn: Turn) -> None:
    """Move every rank's clock on to when it has sent its message and has that of its left."""
    arrived = start_turn(network, now, turn)
    end_turn(now, turn, arrived)
    network.messages += turn.messages
    network.num_bytes += turn.num_bytes


def start_turn(network: Network, now: Ints, turn: Turn) -> Ints:
    """Send; `now` moves on to when that is done. Returns when the left's messages are here."""
    if turn.sends is not None:
        return _start_some(network, now, turn, turn.sends)
    now += turn.send
    begin = np.maximum(network.up, now)
    np.add(begin, turn.up, out=network.up)
    at = begin[turn.left] + turn.first
    np.maximum(at, network.up[turn.left] + turn.rest, out=at)
    np.maximum(at, network.down, out=at)
    at += turn.down
    network.down[:] = at
    return at


def _start_some(network: Network, now: Ints, turn: Turn, sends: NDArray[np.bool_]) -> Ints:
    """The same where some ranks have nothing to send."""
    up, down, before = network.up.copy(), network.down.copy(), now.copy()
    at = start_turn(network, now, replace(turn, sends=None, receives=None))
    now[~sends] = before[~sends]
    network.up[~sends] = up[~sends]
    silent = ~sends[turn.left]
    network.down[silent] = down[silent]
    at[silent] = before[silent]
    return at


def end_turn(now: Ints, turn: Turn, arrived: Ints) -> None:
    """Receive what has arrived."""
    np.maximum(now, arrived, out=now)
    now += turn.work if turn.receives is None else turn.work * turn.receives


def swap(network: Network, now: Ints, payload: NDArray[np.int64], *, adds: bool) -> None:
    """Every rank sends `payload[r, p]` bytes to each peer p in order, and waits for theirs."""
    size = network.size
    ranks = np.arange(size)
    # Row r: its peers in order.
    peers = np.arange(size - 1) + (np.arange(size - 1) >= ranks[:, None])
    rows = np.broadcast_to(ranks[:, None], peers.shape)
    sent = Frames.of(payload[rows, peers])
    goes = sent.payload > 0
    handed = now[:, None] + np.cumsum(network.send_ns(sent, rows) * goes, axis=1)
    whole = network.link_ns(sent.whole, rows) * goes
    end = drain(handed, whole, network.up)
    network.up = end[:, -1].copy()
    now[:] = handed[:, -1]
    first = end - whole + network.link_ns(sent.first, rows)
    path = network.delay[rows] + network.delay[peers]
    down, final = network.link_ns(sent.whole, peers), network.link_ns(sent.last, peers)
    work = network.recv_ns(sent, peers) + adds * network.add_ns(sent, peers)
    # A message that is not sent is there from the beginning, and takes no time.
    early = network.down.min()
    first, last = (np.where(goes, at + path, early) for at in (first, end))
    values = (first, last, down * goes, final * goes, work * goes)
    _receive(network, now, *(_by_target(value, peers) for value in values))
    network.messages += goes.sum(axis=1)
    network.num_bytes += (goes * (sent.payload + FRAME_BYTES)).sum(axis=1)


def _by_target(values: Ints, peers: Ints) -> Ints:
    """From rows of what a rank sends to rows of what it gets."""
    size = len(peers)
    square = np.zeros((size, size), dtype=np.int64)
    square[np.arange(size)[:, None], peers] = values
    return np.take_along_axis(square.T, peers, axis=1)


def _receive(
    network: Network, now: Ints, first: Ints, last: Ints, down: Ints, final: Ints, work: Ints
) -> None:
    here, which = merge(first, last, down, final, network.down)
    network.down = here[:, -1].copy()
    now[:] = drain(here, np.take_along_axis(work, which, axis=1), now)[:, -1]
