"""Where a rank listens and connects: `host:port`, loopback unless the user trusts the network."""

import ipaddress
import socket

from tpi.comm.messages import Address
from tpi.errors import ConfigError


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
