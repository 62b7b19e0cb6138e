"""`AllReduce`: the sums of a step. What a model and an engine need to know is here.

A step is one broadcast of the hidden state (`broadcast.py`) and two sums a layer (`allreduces/`),
the last of which only the master gets. `mesh.py` moves the frames.
"""

import math
import time
from collections.abc import Callable
from typing import Protocol

import torch

from tpi.comm.allreduces.base import CHUNK_ELEMENTS, Call
from tpi.comm.allreduces.registry import find_allreduce
from tpi.comm.allreduces.star import star_reduce
from tpi.comm.transport import Transport
from tpi.comm.vector import TORCH_DTYPES, Inbox, WireVector
from tpi.comm.wire import Op, WireDtype
from tpi.errors import ConfigError, NumericsError
from tpi.ranks import Ranks
from tpi.trace import Tracer


class Reducer(Protocol):
    """How the ranks' parts become one: `AllReduce`, or nothing where every part is whole."""

    def all_reduce(self, partial: torch.Tensor, *, step: int, layer: int, op: Op) -> None:
        """Replace `partial` by its sum over all ranks, on every rank."""

    def reduce(self, partial: torch.Tensor, *, step: int, layer: int, op: Op) -> None:
        """Like `all_reduce`, but only the master gets the sum."""


class AllReduce:
    """Sums vectors over all ranks, in place, with the same bits on every rank and in every run.

    Args:
        transport: The connected ranks.
        algorithm: Name of an allreduce; `reduce` goes straight to the master in all of them.
        wire_dtype: "float32", or "bfloat16" for half the bytes and rounded sums.
        max_elements: The longest vector that will ever be summed.
        tracer: Gets "allreduce".
    """

    def __init__(
        self, transport: Transport, algorithm: str, wire_dtype: str, max_elements: int,
        tracer: Tracer,
    ) -> None:  # fmt: skip
        self._algorithm = find_allreduce(algorithm)
        try:
            self._dtype = WireDtype[wire_dtype.upper()]
            torch_dtype = TORCH_DTYPES[self._dtype]
        except KeyError:
            raise ConfigError(f"wire_dtype must be float32 | bfloat16, got {wire_dtype}") from None
        self._transport = transport
        self._ranks = transport.ranks
        self._max_elements = max_elements
        self._tracer = tracer
        wide = self._dtype is not WireDtype.FLOAT32
        self._wire = torch.empty(max_elements, dtype=torch_dtype) if wide else None
        chunk = min(max_elements, CHUNK_ELEMENTS)
        self._inbox = Inbox(self._ranks.world_size - 1, chunk, self._dtype)
        self._scratch = torch.empty(chunk, dtype=torch.float32)

    def all_reduce(self, partial: torch.Tensor, *, step: int, layer: int, op: Op) -> None:
        """Replace `partial` by its sum over all ranks, on every rank.

        Shapes: any, float32, contiguous; the same on every rank.

        Raises:
            NumericsError: a rank (named) contributes NaN or infinity.
            CommError: what a peer did; see `Transport.transfer`.
        """
        self._collect(self._algorithm.run, partial, step, layer, op)

    def reduce(self, partial: torch.Tensor, *, step: int, layer: int, op: Op) -> None:
        """Like `all_reduce`, but only the master gets the sum; others keep what they had.

        With bfloat16 on the wire what they keep may be rounded.
        """
        self._collect(star_reduce, partial, step, layer, op)

    def _collect(
        self, run: Callable[[Call, int], None], partial: torch.Tensor, step: int, layer: int, op: Op
    ) -> None:
        start_ns = time.monotonic_ns()
        count = partial.numel()
        if partial.dtype != torch.float32 or not partial.is_contiguous():
            raise ValueError("a sum takes a contiguous float32 tensor")
        if not 1 <= count <= self._max_elements:
            raise ValueError(f"a sum takes 1..{self._max_elements} elements, got {count}")
        flat = partial.view(-1)
        check_finite(flat, self._ranks, step, layer, op)
        if self._ranks.world_size > 1:
            call = Call(
                self._transport, WireVector(flat, self._wire), self._inbox, self._scratch,
                self._dtype, step, layer, op,
            )  # fmt: skip
            run(call, count)
            if self._ranks.is_master and not _finite(flat):
                by_rank = run is star_reduce or self._algorithm.inbox_is_by_rank
                raise self._bad_sum(call, count, by_rank)
            self._tracer.add("allreduce", start_ns, time.monotonic_ns(), _KINDS[op], layer, step)

    def _bad_sum(self, call: Call, count: int, place_is_rank: bool) -> NumericsError:
        """Every rank checks what it sends; this is for one that does not, or for an overflow."""
        bad = [
            str(rank)
            for place, rank in enumerate(self._ranks.peers)
            if place_is_rank and count <= CHUNK_ELEMENTS
            if not _finite(self._inbox.values(place, count))
        ]
        who = f"rank {', '.join(bad)} sent NaN or infinity" if bad else "finite parts overflowed"
        return NumericsError(f"{who}: the {call.header(0, 1).describe()} is not finite")


# The kind of block that a sum belongs to.
_KINDS = {op: op.name.lower().removesuffix("_input") for op in Op}


def _finite(values: torch.Tensor) -> bool:
    """Whether all are finite. A sum is quicker to form than a mask; it may overflow, though."""
    return math.isfinite(values.sum().item()) or bool(torch.isfinite(values).all())


def check_finite(values: torch.Tensor, ranks: Ranks, step: int, layer: int, op: Op) -> None:
    """Raise NumericsError, with this rank's name, if a part of a sum is not finite."""
    if not _finite(values):
        raise NumericsError(
            f"rank {ranks.rank} computed NaN or infinity: its part of the {op.name.lower()} sum of "
            f"step {step}, layer {layer}"
        )
