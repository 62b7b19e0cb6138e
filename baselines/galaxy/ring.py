"""Rings over the rows of a step, whose transfers run while the caller multiplies.

`Ring.gather` hands every rank's tile of rows to every rank, `Ring.scatter` sums every tile over
the ranks onto the rank that owns it. Both take N - 1 turns, in each of which a tile goes to the
right neighbour and one comes from the left. `RingSender` moves the frames of a turn, in a thread of
its own if asked: it and the caller take strict turns, so that channels have one user at a time.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Self

import torch

from tpi.comm.transport import Recv, Send, Transport
from tpi.comm.vector import as_bytes
from tpi.comm.wire import Expect, FrameHeader, FrameType, Op, WireDtype
from tpi.ranks import Ranks
from tpi.trace import Tracer

Tiles = Sequence[tuple[int, int]]  # rows of each rank, as half-open ranges
_Load = tuple[Sequence[Send], Sequence[Recv]]


class RingSender:
    """Moves frames while the caller does something else; a context manager that ends its thread.

    Nobody else may use `transport` while a `carry` is open. `tracer` gets "allreduce": how long the
    caller itself waits. Without `overlap`, transfers come before the caller's work.
    """

    def __init__(self, transport: Transport, tracer: Tracer, *, overlap: bool) -> None:
        self._transport = transport
        self._tracer = tracer
        self._loads: SimpleQueue[_Load | None] = SimpleQueue()
        self._outcomes: SimpleQueue[BaseException | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="courier", daemon=True)
        self._overlap = overlap
        if overlap:
            self._thread.start()

    @contextmanager
    def carry(self, sends: Sequence[Send], recvs: Sequence[Recv]) -> Iterator[None]:
        """Send and receive while the body runs; all of it is done when the body has ended.

        Raises:
            CommError: as `Transport.transfer`, once the body has ended. An error of the body
                itself comes first, and ends the transfer.
        """
        if not sends and not recvs:
            yield
        elif not self._overlap:
            with self._tracer.span("allreduce"):
                self._transport.transfer(sends, recvs)
            yield
        else:
            self._loads.put((sends, recvs))
            under_way = True
            try:
                yield
                with self._tracer.span("allreduce"):
                    error = self._outcomes.get()
                under_way = False
            finally:
                if under_way:  # an interrupt, or an error of the body: the session is lost
                    self._transport.give_up()
                    self._outcomes.get()
            if error is not None:
                raise error

    def _run(self) -> None:
        while (load := self._loads.get()) is not None:
            try:
                self._transport.transfer(*load)
            except BaseException as exc:  # noqa: BLE001 - it is raised where the caller waits
                self._outcomes.put(exc)
            else:
                self._outcomes.put(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._overlap:
            self._loads.put(None)
            self._thread.join()


@dataclass(frozen=True, slots=True)
class Place:
    """Which collective of a session this is."""

    step: int
    layer: int
    op: Op

    def header(self, first_row: int, num_rows: int, width: int) -> FrameHeader:
        """The header of a frame with some float32 rows."""
        return FrameHeader(
            FrameType.TENSOR, 0, self.step, self.layer, self.op, WireDtype.FLOAT32, first_row,
            (num_rows, width), 0, 4 * num_rows * width,
        )  # fmt: skip


class Ring:
    """Every rank sends to the next one and receives from the one before."""

    def __init__(self, ranks: Ranks, courier: RingSender) -> None:
        self._rank = ranks.rank
        self._size = ranks.world_size
        self._courier = courier
        self._inbox = torch.empty(0)

    def gather(
        self, rows_SD: torch.Tensor, tiles: Tiles, place: Place, use: Callable[[int, int], None]
    ) -> None:
        """Fill in the other ranks' rows, and `use` every tile while the next one travels.

        `rows_SD` has room for all rows, float32, and this rank's tile. `use` gets the range of each
        tile that has rows, this rank's first.
        """
        for turn in range(self._size):
            here = tiles[(self._rank - turn) % self._size]
            coming = tiles[(self._rank - turn - 1) % self._size]
            is_last = turn == self._size - 1
            with (
                nullcontext()
                if is_last
                else self._turn(
                    place, here[0], rows_SD[slice(*here)], coming[0], rows_SD[slice(*coming)]
                )
            ):
                if here[0] < here[1]:
                    use(*here)

    def scatter(
        self, width: int, tiles: Tiles, place: Place, make: Callable[[int, int], torch.Tensor]
    ) -> torch.Tensor:
        """Sum every tile over all ranks; each part is made while the previous sum travels.

        A tile is summed in the order of the ring, beginning behind its owner. `make` returns this
        rank's part of the rows of a range, in new float32 memory.

        Shapes: -> (rows of this rank's tile, width).
        """
        leaving = tiles[(self._rank - 1) % self._size]
        sum_ND = self._part(width, leaving, make)
        for turn in range(self._size - 1):
            coming = tiles[(self._rank - turn - 2) % self._size]
            num_rows = coming[1] - coming[0]
            if self._inbox.numel() < num_rows * width:
                self._inbox = torch.empty(num_rows * width)
            inbox_ND = self._inbox[: num_rows * width].view(num_rows, width)
            with self._turn(place, leaving[0], sum_ND, coming[0], inbox_ND):
                part_ND = self._part(width, coming, make)
            sum_ND, leaving = part_ND.add_(inbox_ND), coming
        return sum_ND

    def _part(
        self, width: int, tile: tuple[int, int], make: Callable[[int, int], torch.Tensor]
    ) -> torch.Tensor:
        return make(*tile) if tile[0] < tile[1] else torch.empty(0, width)

    def _turn(
        self,
        place: Place,
        leaving_row: int,
        leaving_ND: torch.Tensor,
        coming_row: int,
        coming_ND: torch.Tensor,
    ) -> AbstractContextManager[None]:
        """One tile goes to the right while one comes from the left; empty ones do not."""
        sends, recvs = [], []
        if leaving_ND.shape[0]:
            header = place.header(leaving_row, *leaving_ND.shape)
            sends = [Send((self._rank + 1) % self._size, header, as_bytes(leaving_ND.view(-1)))]
        if coming_ND.shape[0]:
            expect = Expect(place.header(coming_row, *coming_ND.shape))
            into = as_bytes(coming_ND.view(-1))
            recvs = [Recv((self._rank - 1) % self._size, expect, into)]
        return self._courier.carry(sends, recvs)
