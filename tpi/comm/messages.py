"""Control frames: a parser of their stream, and their bodies. No I/O, bounded, checked.

HELLO    rank i32, world_size u32, fingerprint 32 bytes, port u16, host (UTF-8, the rest)
WELCOME  per rank 0..world_size-1: port u16, length u8, host (UTF-8)
ABORT    rank u32 (who saw the error first), length u8, code word, message (UTF-8, the rest)
"""

import struct
from dataclasses import dataclass

from tpi.comm.wire import HEADER_BYTES, MAGIC, MAX_CONTROL_BYTES, FrameHeader
from tpi.errors import ConfigError, FrameError

_HELLO = struct.Struct("<iI32sH")
_ABORT = struct.Struct("<IB")
_ADDRESS = struct.Struct("<HB")
_MAX_HOST_BYTES = 255
_MAX_MESSAGE_CHARS = 800  # at most 3200 bytes of UTF-8: fits a control frame

Address = tuple[str, int]


def printable(text: str) -> str:
    """Text from a peer, safe for a terminal and for a log line."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _text(data: bytes, field: str) -> str:
    try:
        return printable(data.decode())
    except UnicodeDecodeError:
        raise FrameError(f"{field}: not UTF-8") from None


@dataclass(frozen=True, slots=True)
class Hello:
    """Who a connection says it is, and where it listens itself (port 0: nowhere)."""

    rank: int
    world_size: int
    fingerprint: bytes
    host: str = ""
    port: int = 0

    def encode(self) -> bytes:
        """The body of a HELLO frame."""
        host = self.host.encode()[:_MAX_HOST_BYTES]
        return _HELLO.pack(self.rank, self.world_size, self.fingerprint, self.port) + host

    @classmethod
    def decode(cls, body: bytes) -> "Hello":
        """Read a body; FrameError if it is not one."""
        if not _HELLO.size <= len(body) <= _HELLO.size + _MAX_HOST_BYTES:
            raise FrameError(f"hello: expected {_HELLO.size} bytes and a host, got {len(body)}")
        rank, world_size, fingerprint, port = _HELLO.unpack_from(body)
        return cls(rank, world_size, fingerprint, _text(body[_HELLO.size :], "host"), port)


def encode_addresses(addresses: list[Address]) -> bytes:
    """The body of a WELCOME frame: where each rank listens.

    Raises:
        ConfigError: more ranks than fit one control frame (over a hundred).
    """
    parts = []
    for host, port in addresses:
        name = host.encode()
        parts.append(_ADDRESS.pack(port, len(name)) + name)
    body = b"".join(parts)
    if len(body) > MAX_CONTROL_BYTES:
        raise ConfigError(f"the addresses of {len(addresses)} ranks do not fit one frame")
    return body


def decode_addresses(body: bytes, world_size: int) -> list[Address]:
    """Read the body of a WELCOME frame; FrameError if it is not one for that many ranks."""
    addresses, offset = [], 0
    for _ in range(world_size):
        if offset + _ADDRESS.size > len(body):
            raise FrameError(f"welcome: the addresses of {world_size} ranks end at {offset}")
        port, length = _ADDRESS.unpack_from(body, offset)
        offset += _ADDRESS.size
        addresses.append((_text(body[offset : offset + length], "host"), port))
        offset += length
    if offset != len(body):
        raise FrameError(f"welcome: expected {offset} bytes, got {len(body)}")
    return addresses


@dataclass(frozen=True, slots=True)
class Abort:
    """Why a session ends: the error's code word and message, and the rank that had it first."""

    rank: int
    code: str
    message: str

    def encode(self) -> bytes:
        """The body of an ABORT frame."""
        code = self.code.encode()[:64]
        message = self.message[:_MAX_MESSAGE_CHARS].encode(errors="replace")
        return _ABORT.pack(self.rank, len(code)) + code + message

    @classmethod
    def decode(cls, body: bytes) -> "Abort":
        """Read a body; FrameError if it is not one."""
        if len(body) < _ABORT.size:
            raise FrameError(f"abort: expected at least {_ABORT.size} bytes, got {len(body)}")
        rank, length = _ABORT.unpack_from(body)
        end = _ABORT.size + length
        return cls(rank, _text(body[_ABORT.size : end], "code"), _text(body[end:], "message"))


class FrameParser:
    """Takes a stream that arrives in any pieces apart; holds at most one frame.

    For handshakes: a frame longer than a control frame is refused from its header alone. Once ranks
    are joined, `Channel` reads payloads straight into their place.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._header: FrameHeader | None = None
        self._error: FrameError | None = None

    @property
    def needed(self) -> int:
        """Bytes up to the end of what is being read: reading no more never crosses a frame."""
        total = HEADER_BYTES if self._header is None else self._header.payload_bytes
        return total - len(self._buffer)

    def feed(self, data: bytes | memoryview) -> list[tuple[FrameHeader, bytes]]:
        """Take bytes; return the frames they complete.

        Raises:
            FrameError: the stream is not ours. It stays so: every later call raises again.
        """
        if self._error is not None:
            raise self._error
        view, frames = memoryview(data), []
        try:
            while len(view):
                take = min(self.needed, len(view))
                self._buffer += view[:take]
                view = view[take:]
                if (frame := self._advance()) is not None:
                    frames.append(frame)
        except FrameError as exc:
            self._error = exc
            raise
        return frames

    def _advance(self) -> tuple[FrameHeader, bytes] | None:
        buffer = self._buffer
        if self._header is None:
            if not MAGIC.startswith(bytes(buffer[:4])):  # a stranger is known by its first byte
                raise FrameError(f"magic: expected {MAGIC!r}, got {bytes(buffer[:4])!r}")
            if len(buffer) < HEADER_BYTES:
                return None
            header = FrameHeader.decode(buffer)
            if (size := header.payload_bytes) > MAX_CONTROL_BYTES:
                raise FrameError(f"payload_bytes: at most {MAX_CONTROL_BYTES} here, got {size}")
            self._header = header
            buffer.clear()
        if len(buffer) < self._header.payload_bytes:
            return None
        frame = (self._header, bytes(buffer))
        self._header = None
        buffer.clear()
        return frame
