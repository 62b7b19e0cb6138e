"""TCP's counters in a device's network namespace: retransmissions above all."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from testbed.base import DeviceError

# A device's name for its end of the link.
INTERFACE = "eth1"
# From `/proc/PID/net/snmp` and `netstat`: what was sent again or given up, and why.
_TCP_COUNTERS = (
    "InSegs", "OutSegs", "RetransSegs", "InErrs", "TCPTimeouts", "TCPSynRetrans", "TCPFastRetrans",
    "TCPSlowStartRetrans", "TCPLossProbes", "TCPSpuriousRTOs", "TCPLostRetransmit", "TCPRcvQDrop",
    "TCPBacklogDrop", "DelayedACKs",
)  # fmt: skip
_HARMLESS = ("TCPSynRetrans", "TCPLossProbes")
# Of a port's counters: for want of room, and by chance.
_DROPPED = ("up_dropped", "up_lost", "down_dropped", "down_lost")


def tcp_counters(pid: int, proc: Path = Path("/proc")) -> dict[str, int]:
    """TCP's counters of a process's namespace since it was made, and its interface's drops."""
    net = proc / str(pid) / "net"
    try:
        table = {**_table(net / "snmp", "Tcp:"), **_table(net / "netstat", "TcpExt:")}
        interface = (net / "dev").read_text(encoding="ascii")
    except OSError as exc:
        raise DeviceError(f"links: counters of process {pid}: {exc.strerror}") from exc
    counters = {name: table[name] for name in _TCP_COUNTERS if name in table}
    return counters | _interface_drops(interface)


def unexplained_retransmissions(
    ports: Sequence[Mapping[str, int]], tcp: Sequence[Mapping[str, int] | None]
) -> int | None:
    """Segments sent again though no link dropped one: the emulation was in TCP's way.

    Three kinds are explained. A full queue drops, as the emulated link would. TCP probes for a lost
    tail after two round trips, which a burst into an empty queue may well take; the emulated device
    would do the same, and one packet more changes no timing. A connection attempt is repeated after
    1 s whatever the dilation. None if a device's counters are missing.
    """
    known = [counted for counted in tcp if counted is not None]
    if len(known) < len(tcp):
        return None
    again = sum(counted["RetransSegs"] for counted in known)
    harmless = sum(counted.get(key, 0) for counted in known for key in _HARMLESS)
    gone = sum(port.get(key, 0) for port in ports for key in _DROPPED)
    return max(0, again - harmless - gone)


def _table(path: Path, prefix: str) -> dict[str, int]:
    """One protocol's lines of names and values."""
    lines = path.read_text(encoding="ascii").splitlines()
    names, values = (line.split()[1:] for line in lines if line.startswith(prefix))
    return dict(zip(names, map(int, values), strict=True))


def _interface_drops(text: str) -> dict[str, int]:
    """From `/proc/PID/net/dev`: 16 numbers a line, the 4th and 12th are packets dropped."""
    for line in text.splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == INTERFACE:
            fields = numbers.split()
            return {"rx_dropped": int(fields[3]), "tx_dropped": int(fields[11])}
    return {}
