"""What goes out from the master: the hidden state of a step, the end of a request or session."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tpi.comm.transport import Recv, Send, Transport
from tpi.comm.vector import as_bytes
from tpi.comm.wire import (
    Expect,
    Flag,
    FrameHeader,
    FrameType,
    Op,
    WireDtype,
    pads_bytes,
    tensor_bytes,
)
from tpi.errors import FrameError
from tpi.ranks import MASTER_RANK
from tpi.trace import Tracer

_NO_HIDDEN = torch.empty(0, 0, 0)


@dataclass(frozen=True, slots=True)
class Broadcast:
    """What a worker must know about a step beside the hidden state."""

    step: int  # passes since the session began
    start: int = 0  # tokens of each sequence that are in the KV cache already
    first: bool = False  # a new request begins: the KV cache is to be emptied
    request: int = 0  # its index
    pads: tuple[int, ...] = ()  # padding on the left of each sequence; empty if there is none


@dataclass(frozen=True, slots=True)
class Received:
    """What a worker got: a step, or in `control` that a request or the session has ended."""

    hidden_BSD: torch.Tensor
    info: Broadcast
    control: FrameType | None = None
    num_decode_steps: int = 0  # with END_REQUEST: steps after the first token


class StepBroadcast:
    """Sends and receives what starts a step, in float32; straight from the master to all workers.

    With a source and targets of its own a rank is a link of a chain: it receives steps from the
    source, sends them to the targets when it likes, and passes on the ends of requests by itself.

    Cost: one message of B S D float32 elements a target.

    A hidden state has at most `max_elements` and the width `hidden_size` (None for any). `targets`
    None is all workers on the master, none on a worker. The tracer gets `span` for sends, and for
    waits within a request.
    """

    def __init__(
        self,
        transport: Transport,
        max_elements: int,
        hidden_size: int | None,
        *,
        source: int = MASTER_RANK,
        targets: Sequence[int] | None = None,
        tracer: Tracer | None = None,
        span: str = "broadcast",
    ) -> None:
        self._transport = transport
        self._source = source
        everybody = transport.ranks.workers if transport.ranks.is_master else ()
        self._targets = tuple(everybody if targets is None else targets)
        self._tracer = tracer or Tracer()
        self._span = span
        self._width = hidden_size or 0
        # Every sequence has at least one element, so the pads take at most this much.
        self._max_bytes = 4 * max_elements + pads_bytes(max_elements // max(1, self._width))
        self._buffer = torch.empty(0, dtype=torch.uint8)
        self._steps_sent = 0

    def send(self, hidden_BSD: torch.Tensor, info: Broadcast) -> None:
        """Start a step on all targets."""
        start_ns = time.monotonic_ns()
        self._steps_sent = info.step + 1
        shape = tuple(hidden_BSD.shape)
        if len(info.pads) not in (0, shape[0]):
            raise ValueError(f"{len(info.pads)} pads for {shape[0]} sequences")
        flags = (Flag.FIRST if info.first else 0) | (Flag.PADDED if info.pads else 0)
        payload = as_bytes(hidden_BSD.to(torch.float32).contiguous().view(-1))
        if info.pads:
            head = torch.zeros(pads_bytes(shape[0]) // 4, dtype=torch.int32)
            head[: shape[0]] = torch.tensor(info.pads, dtype=torch.int32)
            payload = memoryview(bytes(as_bytes(head)) + bytes(payload))
        header = FrameHeader(
            FrameType.TENSOR, int(flags), info.step, 0, Op.BROADCAST, WireDtype.FLOAT32,
            info.start, shape, info.request, len(payload),
        )  # fmt: skip
        self._transport.transfer([Send(t, header, payload) for t in self._targets], [])
        self._tracer.add(self._span, start_ns, time.monotonic_ns(), step=info.step)

    def end_request(self, *, request: int, num_decode_steps: int) -> None:
        """Tell the targets that a request is complete, and how many steps were decode steps."""
        self._send_end(FrameType.END_REQUEST, self._steps_sent, request, num_decode_steps)

    def end_session(self) -> None:
        """Tell the targets that nothing more will come."""
        self._send_end(FrameType.END_SESSION, self._steps_sent, 0, 0)

    def _send_end(self, kind: FrameType, step: int, request: int, num_decode_steps: int) -> None:
        header = FrameHeader(
            kind, step=step, op=Op.BROADCAST, request=request, start=num_decode_steps
        )
        self._transport.transfer([Send(t, header) for t in self._targets], [])

    def receive(self, step: int) -> Received:
        """Wait for the next step or for the end of a request or of the session.

        The hidden state is the caller's to write in until the next call.
        """
        start_ns = time.monotonic_ns()
        header = FrameHeader(
            FrameType.TENSOR, step=step, op=Op.BROADCAST, dtype=WireDtype.FLOAT32,
            shape=(0, 0, self._width),
        )  # fmt: skip
        recv = Recv(self._source, Expect(header, self._max_bytes), self._place, idle=True)
        self._transport.transfer([], [recv])
        got = recv.got
        if got is None:
            raise FrameError("a transfer ended without its frame")
        if got.kind is not FrameType.TENSOR:
            self._send_end(got.kind, got.step, got.request, got.start)
        elif not got.flags & Flag.FIRST:  # before a request the wait is nobody's cost
            self._tracer.add(self._span, start_ns, time.monotonic_ns(), step=step)
        return self._open(got)

    def _place(self, header: FrameHeader) -> memoryview:
        """Room for a payload that has been checked; kept for the next one."""
        if self._buffer.numel() < header.payload_bytes:
            self._buffer = torch.empty(header.payload_bytes, dtype=torch.uint8)
        return as_bytes(self._buffer)[: header.payload_bytes]

    def _open(self, got: FrameHeader) -> Received:
        first = bool(got.flags & Flag.FIRST)
        info = Broadcast(got.step, got.start, first, got.request)
        if got.kind is not FrameType.TENSOR:
            return Received(_NO_HIDDEN, info, got.kind, got.start)
        size = tensor_bytes(got.dtype, got.shape)
        offset = got.payload_bytes - size
        hidden_BSD = self._buffer[offset : offset + size].view(torch.float32).view(got.shape)
        if got.flags & Flag.PADDED:
            pads = self._buffer[: 4 * got.shape[0]].view(torch.int32).tolist()
            if not all(0 <= pad < got.start + (1 << 30) for pad in pads):
                raise FrameError(f"pads: expected counts of tokens, got {pads}")
            info = Broadcast(got.step, got.start, first, got.request, tuple(pads))
        return Received(hidden_BSD, info)
