"""Frames: bytes in, checked values out. No I/O, no torch.

A frame is an 80-byte header and `payload_bytes` of payload. All numbers are little-endian.

    offset  size  field
         0     4  magic "TPI1"
         4     1  version
         5     1  kind (FrameType)
         6     2  flags (Flag)
         8    16  epoch: random, one a session; a frame of another session is refused
        24     4  step: forward passes since the session began
        28     2  layer
        30     1  op (Op): which collective of the step
        31     1  dtype (WireDtype)
        32     4  start: broadcast: cached tokens before this step; sum: first element of the piece;
                  rows (of a sum, or of a block's input): the first one; heartbeat: a counter of
                  other progress; END_REQUEST: decode steps
        36     1  ndim, then 3 reserved bytes, zero
        40    16  shape, 4 numbers; unused ones zero
        56     4  request: index of the request
        60     4  sequence: frames of this direction before this one, without heartbeats and ABORT
        64     8  payload_bytes
        72     8  reserved, zero

The payload of a tensor frame is its elements, row by row. With the flag PADDED it begins with one
u32 a sequence (how many tokens are padding on its left), filled up to a multiple of 64 bytes.
`FrameHeader.decode` checks what holds for every frame; `Expect` checks what the plan says about
the next one. Both happen before a byte of payload is read. `messages.py` takes a stream apart.
"""

import math
import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import TypeVar

from tpi.errors import FrameError

MAGIC = b"TPI1"
VERSION = 1
EPOCH_BYTES = 16
MAX_DIMS = 4
# HELLO, WELCOME and ABORT; also what a stranger may make us hold (with the header: FAULTS rule 4).
MAX_CONTROL_BYTES = 4096 - 80
# No plan makes a larger frame: a prefill chunk of 4096 tokens of width 16384 in float32 is 256 MiB.
MAX_TENSOR_BYTES = 1 << 30
_E = TypeVar("_E", bound=IntEnum)
_NO_EPOCH = bytes(EPOCH_BYTES)
_LAYOUT = struct.Struct("<4sBBH16sIHBBIB3s4IIIQ8s")
HEADER_BYTES = _LAYOUT.size


class FrameType(IntEnum):
    """What a frame is for."""

    HELLO = 1
    WELCOME = 2
    TENSOR = 3
    HEARTBEAT = 4
    END_REQUEST = 5
    END_SESSION = 6
    ABORT = 7


class Op(IntEnum):
    """Which collective of a step a frame belongs to."""

    NONE = 0
    BROADCAST = 1
    ATTN = 2  # parts of the block's result, to be summed
    FFN = 3
    ATTN_INPUT = 4  # rows that the block is applied to, where each rank has some of them
    FFN_INPUT = 5
    LAST = 6  # the last position after all layers, to the master


class WireDtype(IntEnum):
    """What the elements of a payload are; NONE where there is no tensor."""

    NONE = 0
    FLOAT32 = 1
    BFLOAT16 = 2

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return (0, 4, 2)[self]


class Flag(IntFlag):
    """Bits of `flags`."""

    NONE = 0
    FIRST = 1  # broadcast: a new request begins, the KV cache is empty
    PADDED = 2  # broadcast: the payload begins with the left padding of each sequence
    WAITING = 4  # heartbeat: the sender waits for another rank, it is not at work itself


_ALL_FLAGS = int(Flag.FIRST | Flag.PADDED | Flag.WAITING)
_BODY_TYPES = (FrameType.HELLO, FrameType.WELCOME, FrameType.ABORT)


def pads_bytes(batch: int) -> int:
    """Bytes at the head of a PADDED payload of that many sequences."""
    return -(-4 * batch // 64) * 64


def tensor_bytes(dtype: WireDtype, shape: tuple[int, ...], flags: int = 0) -> int:
    """Bytes of the payload of a tensor frame."""
    pads = pads_bytes(shape[0]) if flags & Flag.PADDED else 0
    return pads + math.prod(shape) * dtype.itemsize


@dataclass(frozen=True, slots=True)
class FrameHeader:
    """The header of one frame; see the module for what each field means."""

    kind: FrameType
    flags: int = 0
    step: int = 0
    layer: int = 0
    op: Op = Op.NONE
    dtype: WireDtype = WireDtype.NONE
    start: int = 0
    shape: tuple[int, ...] = ()
    request: int = 0
    payload_bytes: int = 0
    sequence: int = 0
    epoch: bytes = _NO_EPOCH

    def encode(self) -> bytes:
        """The 80 bytes of this header."""
        return self.encode_as(self.epoch, self.sequence)

    def encode_as(self, epoch: bytes, sequence: int) -> bytes:
        """The 80 bytes, with epoch and sequence filled in by the channel that sends it."""
        shape = self.shape
        return _LAYOUT.pack(
            MAGIC, VERSION, self.kind, self.flags, epoch, self.step, self.layer, self.op,
            self.dtype, self.start, len(shape), b"", *shape, *_FILL[len(shape)],
            self.request, sequence, self.payload_bytes, b"",
        )  # fmt: skip

    @classmethod
    def decode(cls, data: bytes | bytearray | memoryview) -> "FrameHeader":
        """Read and check 80 bytes.

        Raises:
            FrameError: naming the field that cannot be; nothing is allocated from any field.
        """
        if len(data) != HEADER_BYTES:
            raise FrameError(f"header: expected {HEADER_BYTES} bytes, got {len(data)}")
        (magic, version, kind, flags, epoch, step, layer, op, dtype, start, ndim, gap, *shape,
         request, sequence, payload_bytes, tail) = _LAYOUT.unpack(data)  # fmt: skip
        if magic != MAGIC:
            raise FrameError(f"magic: expected {MAGIC!r}, got {magic!r}; not a tpi peer")
        if version != VERSION:
            raise FrameError(f"version: expected {VERSION}, got {version}")
        if flags & ~_ALL_FLAGS:
            raise FrameError(f"flags: unknown bits in {flags:#06x}")
        if ndim > MAX_DIMS or any(shape[ndim:]) or any(gap) or any(tail):
            raise FrameError(f"shape: expected at most {MAX_DIMS} sizes and zeros, got {ndim}")
        header = cls(
            _member(FrameType, kind, "type"), flags, step, layer, _member(Op, op, "op"),
            _member(WireDtype, dtype, "dtype"), start, tuple(shape[:ndim]), request,
            payload_bytes, sequence, epoch,
        )  # fmt: skip
        header._check_length()
        return header

    def _check_length(self) -> None:
        if self.kind is FrameType.TENSOR:
            if self.dtype is WireDtype.NONE or not self.shape or 0 in self.shape:
                raise FrameError(f"shape: {self.dtype.name} {self.shape} is not a tensor")
            expected = tensor_bytes(self.dtype, self.shape, self.flags)
            if self.payload_bytes != expected or expected > MAX_TENSOR_BYTES:
                raise FrameError(
                    f"payload_bytes: shape {self.shape} of {self.dtype.name} takes {expected}, at "
                    f"most {MAX_TENSOR_BYTES} are allowed, the header says {self.payload_bytes}"
                )
            return
        limit = MAX_CONTROL_BYTES if self.kind in _BODY_TYPES else 0
        if self.payload_bytes > limit:
            raise FrameError(
                f"payload_bytes: {self.kind.name} takes at most {limit}, got {self.payload_bytes}"
            )

    def describe(self) -> str:
        """The place in the plan, for messages: "attn of step 3, layer 5"."""
        if self.op is Op.NONE:
            return self.kind.name.lower()
        if self.op is Op.BROADCAST:
            return f"broadcast of step {self.step}"
        if self.op is Op.LAST:
            return f"last position of step {self.step}"
        name = self.op.name.lower()
        what = name.replace("_", " ") if name.endswith("_input") else f"{name} sum"
        return f"{what} of step {self.step}, layer {self.layer}"


_FILL = tuple((0,) * (MAX_DIMS - n) for n in range(MAX_DIMS + 1))


def _member(enum: type[_E], value: int, field: str) -> _E:
    try:
        return enum(value)
    except ValueError:
        raise FrameError(f"{field}: unknown value {value}") from None


@dataclass(frozen=True, slots=True)
class Expect:
    """What the plan says the next frame of a peer is.

    All fields of `header` must be equal, but for epoch and sequence, which the channel checks. With
    `max_payload_bytes` the sender chooses flags, start, request and the sizes that `header.shape`
    has as 0, up to so many bytes, or sends END_REQUEST or END_SESSION: a worker waits for a step.
    """

    header: FrameHeader
    max_payload_bytes: int = 0

    def check(self, got: FrameHeader) -> None:
        """Compare with a decoded header.

        Raises:
            FrameError: naming the first field that differs, what was expected and what came.
        """
        want = self.header
        if self.max_payload_bytes:
            if got.kind in (FrameType.END_REQUEST, FrameType.END_SESSION):
                return
            self._check_open(got)
        for field in _FIXED_FIELDS if self.max_payload_bytes else _ALL_FIELDS:
            expected, value = getattr(want, field), getattr(got, field)
            if expected != value:
                raise FrameError(
                    f"{field}: expected {_show(expected)}, got {_show(value)} "
                    f"(expected the {want.describe()}, got the {got.describe()})"
                )

    def _check_open(self, got: FrameHeader) -> None:
        want = self.header.shape
        if got.kind is FrameType.TENSOR and (
            len(got.shape) != len(want)
            or any(w not in (0, g) for w, g in zip(want, got.shape, strict=True))
        ):
            raise FrameError(f"shape: expected {want} (0 stands for any), got {got.shape}")
        if got.payload_bytes > self.max_payload_bytes:
            raise FrameError(
                f"payload_bytes: the plan allows {self.max_payload_bytes}, got {got.payload_bytes}"
            )


_FIXED_FIELDS = ("kind", "step", "layer", "op", "dtype")
_ALL_FIELDS = ("kind", "step", "layer", "op", "dtype", "flags", "start", "shape", "request",
               "payload_bytes")  # fmt: skip


def _show(value: object) -> str:
    return value.name if isinstance(value, IntEnum) else str(value)
