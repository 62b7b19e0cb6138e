"""Lets the expected ranks in and nobody else.

A connection has `handshake_s` and one control frame (4 KiB) to name session, rank and plan. At
most 16 may be undecided at a time: the oldest goes when one more comes. A refusal is a line in the
log, and the join goes on.
"""

import contextlib
import hmac
import logging
import selectors
import socket
import time
from collections.abc import Set
from dataclasses import dataclass, field, replace

from tpi.comm.deadlines import Deadlines
from tpi.comm.messages import Abort, FrameParser, Hello
from tpi.comm.wire import FrameHeader, FrameType
from tpi.errors import AuthError, CommError, FrameError, IncompatibleError, PeerLostError, TpiError

log = logging.getLogger(__name__)
MAX_STRANGERS = 16
_TICK_S = 0.05


@dataclass(frozen=True, slots=True)
class Identity:
    """What all ranks of a session know: who they are, and that they belong together."""

    rank: int
    world_size: int
    session: bytes
    fingerprint: bytes

    def frame(self, kind: FrameType, body: bytes) -> bytes:
        """A control frame of this session."""
        return FrameHeader(kind, payload_bytes=len(body), epoch=self.session).encode() + body

    def refusal(self, error: TpiError) -> bytes:
        """The ABORT frame that says so; without the epoch, which no stranger may learn."""
        body = Abort(self.rank, error.code, str(error)).encode()
        return FrameHeader(FrameType.ABORT, payload_bytes=len(body)).encode() + body


@dataclass(slots=True)
class Guest:
    """A connection: a stranger until its HELLO is accepted."""

    sock: socket.socket
    address: str
    since: float
    parser: FrameParser = field(default_factory=FrameParser)
    hello: Hello | None = None


class Acceptor:
    """Waits on a listening socket, which it does not close, until all of `expected` say HELLO.

    Their identity must fit `me`. All together have `join_s`, each connection `handshake_s`.
    """

    def __init__(
        self, listener: socket.socket, me: Identity, expected: Set[int], deadlines: Deadlines
    ) -> None:
        self._listener = listener
        self._me = me
        self._expected = frozenset(expected)
        self._limits = deadlines
        self._strangers: dict[int, Guest] = {}
        self._guests: dict[int, Guest] = {}
        self._selector = selectors.DefaultSelector()
        self._refusals: list[str] = []

    def run(self, deadline: float) -> dict[int, Guest]:
        """Let them in; `deadline` is a time of the monotonic clock.

        Raises:
            PeerLostError: some rank did not come in time (all missing ones are named), or one that
                had come has left.
        """
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        next_beat = time.monotonic()
        try:
            while missing := self._expected - self._guests.keys():
                now = time.monotonic()
                if now > deadline:
                    raise self._missing(missing)
                if now >= next_beat:
                    self._beat()
                    next_beat = now + self._limits.heartbeat_s
                self._expire(now)
                self._turn(min(_TICK_S, self._limits.handshake_s / 4))
        except BaseException as exc:
            self._turn_away(exc)
            raise
        finally:
            for guest in list(self._strangers.values()):
                self._drop(guest)
            self._selector.close()
        return dict(self._guests)

    def _turn(self, timeout_s: float) -> None:
        ready = self._selector.select(timeout_s)
        for key, _events in ready:  # those that speak first, then those that knock
            if key.data is not None:
                self._listen(key.data)
        if any(key.data is None for key, _events in ready):
            self._accept()

    def _accept(self) -> None:
        try:
            sock, address = self._listener.accept()
        except OSError:
            return  # it hung up again before we came
        if len(self._strangers) >= MAX_STRANGERS:
            oldest = min(self._strangers.values(), key=lambda guest: guest.since)
            self._refuse(oldest, AuthError(f"more than {MAX_STRANGERS} connections without HELLO"))
        sock.setblocking(False)
        guest = Guest(sock, f"{address[0]}:{address[1]}", time.monotonic())
        self._strangers[sock.fileno()] = guest
        self._selector.register(sock, selectors.EVENT_READ, guest)

    def _listen(self, guest: Guest) -> None:
        if guest.sock.fileno() < 0:
            return
        try:
            data = guest.sock.recv(max(1, guest.parser.needed))
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if guest.hello is not None:
            if not data:
                raise PeerLostError(f"rank {guest.hello.rank} is gone: it left during the join")
            raise FrameError(f"rank {guest.hello.rank}: a frame before WELCOME")
        try:
            if not data:
                raise FrameError("it closed the connection before HELLO")
            for header, body in guest.parser.feed(data):
                self._admit(guest, header, body)
        except CommError as exc:
            self._refuse(guest, exc)

    def _admit(self, guest: Guest, header: FrameHeader, body: bytes) -> None:
        if header.kind is not FrameType.HELLO:
            raise FrameError(f"type: expected HELLO, got {header.kind.name}")
        if not hmac.compare_digest(header.epoch, self._me.session):
            raise AuthError("it belongs to another session")
        hello = Hello.decode(body)
        self._check(hello)
        # Others reach it where it says, unless it listens on every address.
        every = hello.host in ("", "0.0.0.0", "::")
        guest.hello = replace(hello, host=guest.sock.getpeername()[0]) if every else hello
        del self._strangers[guest.sock.fileno()]
        self._guests[hello.rank] = guest
        log.info("rank %d joined from %s", hello.rank, guest.address)

    def _check(self, hello: Hello) -> None:
        me = self._me
        if hello.world_size != me.world_size:
            raise IncompatibleError(
                f"rank {hello.rank} is one of {hello.world_size} ranks, "
                f"rank {me.rank} one of {me.world_size}"
            )
        if hello.rank in self._guests:
            raise AuthError(f"rank {hello.rank} has joined already, this is a second one")
        if hello.rank not in self._expected:
            raise IncompatibleError(
                f"rank {hello.rank} is not expected here, only {sorted(self._expected)}"
            )
        if not hmac.compare_digest(hello.fingerprint, me.fingerprint):
            raise IncompatibleError(
                f"rank {hello.rank} has another plan, model or options than rank {me.rank}"
            )

    def _refuse(self, guest: Guest, error: TpiError) -> None:
        log.warning("refused %s: %s", guest.address, error)
        self._refusals = [*self._refusals[-3:], f"{guest.address} ({error})"]
        with contextlib.suppress(OSError):  # it may not want to know
            guest.sock.send(self._me.refusal(error))
        self._drop(guest)

    def _drop(self, guest: Guest) -> None:
        self._strangers.pop(guest.sock.fileno(), None)
        self._selector.unregister(guest.sock)
        guest.sock.close()

    def _expire(self, now: float) -> None:
        for guest in list(self._strangers.values()):
            if now - guest.since > self._limits.handshake_s:
                self._refuse(guest, AuthError(f"no HELLO within {self._limits.handshake_s:g} s"))

    def _beat(self) -> None:
        beat = FrameHeader(FrameType.HEARTBEAT, epoch=self._me.session).encode()
        for guest in self._guests.values():
            with contextlib.suppress(OSError):  # the next read says that it is gone
                guest.sock.send(beat)

    def _missing(self, missing: Set[int]) -> PeerLostError:
        names = ", ".join(map(str, sorted(missing)))
        refused = f"; refused: {'; '.join(self._refusals)}" if self._refusals else ""
        return PeerLostError(
            f"rank {names} of {self._me.world_size} did not join within "
            f"{self._limits.join_s:g} s{refused}"
        )

    def _turn_away(self, exc: BaseException) -> None:
        ended = PeerLostError(f"ended by {type(exc).__name__}")
        error = exc if isinstance(exc, TpiError) else ended
        for guest in self._guests.values():
            with contextlib.suppress(OSError):
                guest.sock.send(self._me.refusal(error))
            guest.sock.close()
