"""Frames out of a stream that arrives in any pieces; no I/O. For handshakes: small frames.

Once ranks are joined, `Channel` reads payloads straight into their place instead.
"""

from tpi.comm.wire import HEADER_BYTES, MAGIC, MAX_CONTROL_BYTES, FrameHeader
from tpi.errors import FrameError


class FrameParser:
    """Takes a stream apart; holds at most one frame.

    Args:
        max_payload_bytes: Frames with a longer payload are refused from their header alone.
    """

    def __init__(self, max_payload_bytes: int = MAX_CONTROL_BYTES) -> None:
        self._limit = max_payload_bytes
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
            if header.payload_bytes > self._limit:
                raise FrameError(
                    f"payload_bytes: at most {self._limit} here, got {header.payload_bytes}"
                )
            self._header = header
            buffer.clear()
        if len(buffer) < self._header.payload_bytes:
            return None
        frame = (self._header, bytes(buffer))
        self._header = None
        buffer.clear()
        return frame
