"""From a spec to connected ranks: every worker calls the master and names its rank and plan.

The master answers WELCOME with the addresses of all ranks once all are there. For algorithms that
need it, each worker then calls every worker of a lower rank in the same way. `acceptor.py` is the
side that is called. Addresses are loopback unless the user trusts the network.
"""

import ipaddress
import socket
import time
from contextlib import ExitStack

from tpi.comm.acceptor import Acceptor, Identity
from tpi.comm.deadlines import Deadlines
from tpi.comm.mesh import SocketMesh
from tpi.comm.messages import Abort, Address, FrameParser, Hello, decode_addresses, encode_addresses
from tpi.comm.wire import FrameType
from tpi.errors import ConfigError, FrameError, PeerLostError, PeerTimeoutError, error_from_code
from tpi.ranks import MASTER_RANK, Ranks

_FIRST_RETRY_S = 0.02
_LAST_RETRY_S = 0.5


def join(
    ranks: Ranks,
    *,
    bind: str,
    master: str | None,
    session: bytes,
    fingerprint: bytes,
    deadlines: Deadlines,
    peer_links: bool,
    trust_network: bool = False,
    listener: socket.socket | None = None,
) -> SocketMesh:
    """Connect this rank with the others, within `deadlines.join_s`.

    Args:
        ranks: Who this is.
        bind: Host that this rank listens on.
        master: `host:port` of the master; the master listens on that port of its `bind`.
        session: 16 random bytes, new for every start, the same on all ranks, and secret: whoever
            knows them is let in.
        fingerprint: 32 bytes, a digest of all that the ranks must agree on.
        deadlines: How long anything may take.
        peer_links: Whether workers talk to each other.
        trust_network: Allow addresses beyond loopback although nothing is encrypted.
        listener: The master's listening socket, closed here; None opens one.

    Raises:
        ConfigError: an address cannot be used.
        PeerLostError: a rank is missing at the deadline (named), or left during the join.
        AuthError, IncompatibleError: the master refused this rank, and why.
    """
    if ranks.world_size == 1:
        return SocketMesh(ranks, {}, session, deadlines)
    me = Identity(ranks.rank, ranks.world_size, session, fingerprint)
    deadline = time.monotonic() + deadlines.join_s
    if master is None and listener is None:
        raise ConfigError("master: needed with more than one rank, got none")
    if ranks.is_master:
        listener = listener or open_listener(bind, parse_address(master or "")[1], trust_network)
        with listener:
            sockets = _welcome_all(listener, me, set(ranks.workers), deadlines, deadline)
    else:
        address = parse_address(master or "")
        worker = _Joiner(me, deadlines, deadline, trust_network)
        sockets = worker.run(bind, address, peer_links)
    return SocketMesh(ranks, sockets, session, deadlines)


def _welcome_all(
    listener: socket.socket, me: Identity, expected: set[int], limits: Deadlines, deadline: float
) -> dict[int, socket.socket]:
    """Let the expected ranks in and tell each of them that all are there."""
    guests = Acceptor(listener, me, expected, limits).run(deadline)
    addresses: list[Address] = [("", 0)] * me.world_size
    for rank, guest in guests.items():
        if guest.hello is not None:
            addresses[rank] = (guest.hello.host, guest.hello.port)
    welcome = me.frame(FrameType.WELCOME, encode_addresses(addresses))
    try:
        for rank, guest in guests.items():
            try:
                guest.sock.sendall(welcome)  # a few KiB: the kernel takes them at once
            except OSError as exc:
                raise PeerLostError(f"rank {rank} is gone: it left during the join: {exc}") from exc
    except BaseException:
        for guest in guests.values():
            guest.sock.close()
        raise
    return {rank: guest.sock for rank, guest in guests.items()}


class _Joiner:
    """The worker's side of a join."""

    def __init__(self, me: Identity, limits: Deadlines, deadline: float, trust: bool) -> None:
        self._me = me
        self._limits = limits
        self._deadline = deadline
        self._trust = trust

    def run(self, bind: str, master: Address, peer_links: bool) -> dict[int, socket.socket]:
        """Connections to the master and, where wanted, to the other workers."""
        with ExitStack() as stack:
            port = 0
            if peer_links:
                listener = stack.enter_context(open_listener(bind, 0, self._trust))
                port = listener.getsockname()[1]
            me = self._me
            hello = Hello(me.rank, me.world_size, me.fingerprint, bind if port else "", port)
            with ExitStack() as undo:
                sockets: dict[int, socket.socket] = {}
                addresses = self._call(MASTER_RANK, master, hello, sockets, undo)
                if peer_links:
                    for rank in range(1, me.rank):
                        self._call(rank, addresses[rank], hello, sockets, undo)
                    higher = set(range(me.rank + 1, me.world_size))
                    sockets |= _welcome_all(listener, me, higher, self._limits, self._deadline)
                undo.pop_all()
        return sockets

    def _call(
        self, rank: int, address: Address, hello: Hello, sockets: dict[int, socket.socket],
        undo: ExitStack,
    ) -> list[Address]:  # fmt: skip
        """Connect to a rank, say who we are, wait until it lets us in."""
        sock = undo.enter_context(self._connect(rank, address))
        try:
            sock.sendall(self._me.frame(FrameType.HELLO, hello.encode()))
            body = self._await_welcome(sock, rank)
        except TimeoutError as exc:
            raise PeerTimeoutError(
                f"rank {rank} at {address[0]}:{address[1]} is silent during the join, "
                f"for {self._limits.dead_s:g} s"
            ) from exc
        except OSError as exc:
            raise PeerLostError(f"rank {rank} is gone: {exc}, during the join") from exc
        sockets[rank] = sock
        return decode_addresses(body, self._me.world_size)

    def _connect(self, rank: int, address: Address) -> socket.socket:
        resolve(address[0], self._trust)
        retry_s = _FIRST_RETRY_S
        while True:
            left_s = self._deadline - time.monotonic()
            try:
                return socket.create_connection(address, timeout=max(0.01, left_s))
            except OSError as exc:
                if left_s <= retry_s:
                    raise PeerLostError(
                        f"rank {rank} does not answer at {address[0]}:{address[1]} "
                        f"within {self._limits.join_s:g} s: {exc}"
                    ) from exc
            time.sleep(retry_s)  # nobody listens there yet
            retry_s = min(_LAST_RETRY_S, retry_s * 2)

    def _await_welcome(self, sock: socket.socket, rank: int) -> bytes:
        parser = FrameParser()
        while True:
            left_s = self._deadline + self._limits.dead_s - time.monotonic()
            sock.settimeout(max(0.01, min(self._limits.dead_s, left_s)))
            data = sock.recv(parser.needed)
            if not data:
                raise PeerLostError(
                    f"rank {rank} is gone: it closed the connection during the join"
                )
            for header, body in parser.feed(data):
                if header.kind is FrameType.ABORT:
                    end = Abort.decode(body)
                    raise error_from_code(end.code, f"rank {end.rank} reported: {end.message}")
                if header.epoch != self._me.session:
                    raise FrameError(f"rank {rank}: epoch: a frame of another session")
                if header.kind is FrameType.WELCOME:
                    return body
                if header.kind is not FrameType.HEARTBEAT:
                    raise FrameError(f"rank {rank}: expected WELCOME, got {header.kind.name}")


def parse_address(text: str) -> Address:
    """Split "host:port" or "[v6]:port".

    Raises:
        ConfigError: it is neither, or the port is not in 1..65535.
    """
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise ConfigError(f"address {text!r}: expected host:port with a port in 1..65535")
    return host, int(port)


def resolve(host: str, trust_network: bool) -> tuple[socket.AddressFamily, str]:
    """The family and number of a host name.

    Raises:
        ConfigError: unknown, or not loopback although the network is not trusted: frames travel
            unencrypted.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as exc:
        raise ConfigError(f"host {host!r}: {exc}") from exc
    family, number = found[0][0], str(found[0][4][0])
    if not trust_network and not ipaddress.ip_address(number.partition("%")[0]).is_loopback:
        raise ConfigError(
            f"host {host!r} ({number}) is not a loopback address and frames are not encrypted: "
            "use 127.0.0.1, or say with insecure_i_trust_this_network that all on it may listen"
        )
    return family, number


def open_listener(host: str, port: int, trust_network: bool) -> socket.socket:
    """A listening socket; port 0 lets the system choose.

    Raises:
        ConfigError: the address is not ours, in use, or not allowed.
    """
    family, number = resolve(host, trust_network)
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((number, port))
        sock.listen(128)
    except OSError as exc:
        sock.close()
        raise ConfigError(f"cannot listen on {host}:{port}: {exc}") from exc
    return sock
