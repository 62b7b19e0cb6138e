"""A device's end of its link: interface, address, neighbours, route and TCP settings.

`expected` is the flat table of everything that must hold in the device's network namespace; it also
stands in the run record. `settle` brings it about and reads all of it back, because nothing is
believed that was not read back. `AttachedDevices` does this for all devices of a network.
"""

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from testbed.base import DeviceError
from testbed.links.link import MTU_BYTES, LinkSpec
from testbed.links.nettools import entered, namespace_inode, namespace_of, run_tool
from testbed.links.tcp_counters import INTERFACE, tcp_counters, unexplained_retransmissions

SUBNET = "10.77.0.0/16"
# Devices per third byte of the address, so that none ends in 0 or 255.
_PER_NET = 200
MAX_DEVICES = 256 * _PER_NET
_INITIAL_WINDOW = 10
# Linux's floor of the retransmission timer (TCP_RTO_MIN), and where it stops growing.
_RTO_MIN_S, _RTO_MAX_S = 0.2, 120.0
# A whole window leaves in one burst while the switch may be late by some ms.
_TX_QUEUE_PACKETS = 10_000
_PROC_SYS = Path("/proc/sys")

Run = Callable[[Sequence[str], str], str]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One device's end of its link; all other devices of the network are its neighbours.

    Attributes:
        dilation: How much slower than the emulated clock this host's is.
    """

    index: int
    num_devices: int
    dilation: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.num_devices <= MAX_DEVICES:
            raise DeviceError(
                f"links: device {self.index} of {self.num_devices}, at most {MAX_DEVICES} fit"
            )
        if not (self.dilation >= 1.0 and _RTO_MIN_S * self.dilation < _RTO_MAX_S):
            most = _RTO_MAX_S / _RTO_MIN_S
            raise DeviceError(
                f"links: dilation {self.dilation:g}: expected at least 1 and less than {most:g},"
                " where TCP's retransmission timer ends"
            )

    @property
    def rto_min_ms(self) -> int:
        """The floor of its retransmission timer on this host's clock."""
        return round(_RTO_MIN_S * 1e3 * self.dilation)

    @property
    def peers(self) -> list[int]:
        """The other devices."""
        return [index for index in range(self.num_devices) if index != self.index]


def address_of(index: int) -> str:
    """A device's IPv4 address."""
    return f"10.77.{index // _PER_NET}.{index % _PER_NET + 1}"


def mac_of(index: int) -> str:
    """A device's Ethernet address; the switch finds the port in its last two bytes."""
    return f"02:00:00:00:{(index + 1) >> 8:02x}:{(index + 1) & 0xFF:02x}"


def wanted_sysctls(end: Endpoint) -> dict[str, str]:
    """TCP's settings in the device's namespace, where the kernel knows them."""
    return {
        # BBR, where it is the default, paces a small message over a round trip.
        "net.ipv4.tcp_congestion_control": "reno",
        # A step's pause must not shrink the window that the warm-up has opened.
        "net.ipv4.tcp_slow_start_after_idle": "0",
        # A connection must not start from what an earlier one to the same peer has seen.
        "net.ipv4.tcp_no_metrics_save": "1",
        # A small write leaves at once, whatever still waits in the interface.
        "net.ipv4.tcp_autocorking": "0",
        # 12 bytes in every packet: expected rates count 1448 bytes of payload in 1500.
        "net.ipv4.tcp_timestamps": "1",
        "net.ipv4.tcp_sack": "1",
        # Undilated, the timer's floor would be shorter than a queue of the dilated link.
        "net.ipv4.tcp_rto_min_us": str(end.rto_min_ms * 1000),
        # No router solicitations or duplicate address detection in the queues.
        "net.ipv6.conf.all.disable_ipv6": "1",
        "net.ipv6.conf.default.disable_ipv6": "1",
    }


def known_sysctls(wanted: Mapping[str, str], root: Path = _PROC_SYS) -> dict[str, str]:
    """Those of `wanted` that this kernel has."""
    return {k: v for k, v in wanted.items() if root.joinpath(*k.split(".")).exists()}


def move_command(interface: str, namespace: str, source: str | None = None) -> list[str]:
    """Move an interface from `source` (or ours) to a namespace, under the device's name for it."""
    command = ["ip", "link", "set", "dev", interface, "netns", namespace, "name", INTERFACE]
    return command if source is None else entered(source, command)


def sysctl_command(settings: Mapping[str, str]) -> list[str]:
    """Set them all."""
    return ["sysctl", "-q", "-w", *(f"{key}={value}" for key, value in settings.items())]


def interface_batch(end: Endpoint) -> str:
    """Lines for `ip -batch`: the interface, its address, its route and all neighbours.

    Fixed neighbours keep ARP out of the measured path. Segmentation offload is off
    (`gso_max_segs 1`), because with it TCP holds data back to send more at once.
    """
    lines = [
        "link set dev lo up",
        f"link set dev {INTERFACE} address {mac_of(end.index)} mtu {MTU_BYTES}",
        f"link set dev {INTERFACE} txqueuelen {_TX_QUEUE_PACKETS} gso_max_segs 1",
        f"address add {address_of(end.index)}/16 dev {INTERFACE} noprefixroute",
        f"link set dev {INTERFACE} up",
        f"route add {SUBNET} dev {INTERFACE} scope link src {address_of(end.index)}"
        f" quickack 1 initcwnd {_INITIAL_WINDOW} rto_min {end.rto_min_ms}ms",
    ]
    lines += [
        f"neighbour add {address_of(peer)} lladdr {mac_of(peer)} dev {INTERFACE} nud permanent"
        for peer in end.peers
    ]
    return "".join(f"{line}\n" for line in lines)


def expected(end: Endpoint, sysctls: Mapping[str, str]) -> dict[str, str]:
    """Everything that must be read back, as text."""
    return {
        "address": f"{address_of(end.index)}/16",
        "mac": mac_of(end.index),
        "mtu_bytes": str(MTU_BYTES),
        "is_up": "True",
        "gso_max_segs": "1",
        "txqueuelen": str(_TX_QUEUE_PACKETS),
        "quickack": "1",
        "initcwnd": str(_INITIAL_WINDOW),
        "rto_min_ms": str(end.rto_min_ms),
        "neighbours": str(len(end.peers)),
        **sysctls,
    }


def seen_interface(text: str) -> dict[str, str]:
    """What `ip -j -d address show dev eth1` says."""
    (found,) = (entry for entry in json.loads(text) if entry)
    inet = [a for a in found["addr_info"] if a["family"] == "inet"]
    names = {"mac": "address", "mtu_bytes": "mtu", "gso_max_segs": "gso_max_segs"}
    return {
        "address": ", ".join(f"{a['local']}/{a['prefixlen']}" for a in inet),
        "is_up": str({"UP", "LOWER_UP"} <= set(found["flags"])),
        "txqueuelen": str(found.get("txqlen")),
        **{name: str(found.get(key)) for name, key in names.items()},
    }


def seen_route(text: str) -> dict[str, str]:
    """What `ip -j route` says of the route to the other devices."""
    metrics = [r.get("metrics") or [{}] for r in json.loads(text) if r.get("dst") == SUBNET]
    names = {"quickack": "quickack", "initcwnd": "initcwnd", "rto_min_ms": "rto_min"}
    return {name: str(metrics[0][0].get(key)) if metrics else "None" for name, key in names.items()}


def seen_neighbours(text: str, end: Endpoint) -> dict[str, str]:
    """How many of its peers `ip -j neighbour` knows rightly and permanently."""
    macs = {address_of(peer): mac_of(peer) for peer in end.peers}
    known = {n["dst"]: n.get("lladdr") for n in json.loads(text) if n["state"] == ["PERMANENT"]}
    return {"neighbours": str(sum(known.get(peer) == mac for peer, mac in macs.items()))}


def seen_sysctls(text: str, names: Sequence[str]) -> dict[str, str]:
    """What `sysctl -n NAME ...` says, a line each."""
    return dict(zip(names, text.splitlines(), strict=True))


def settle(
    interface: str, pid: int, end: Endpoint, run: Run = run_tool, source: str | None = None
) -> dict[str, str]:
    """Make `interface` the `eth1` of a process's namespace; gives everything that was read back."""
    with namespace_of(pid) as path:
        # First, so that the interface comes up without IPv6 and every connection has them.
        run(entered(path, sysctl_command(known_sysctls(wanted_sysctls(end)))), "")
        run(move_command(interface, path, source), "")
        run(entered(path, ["ip", "-batch", "-"]), interface_batch(end))
    return verify(pid, end, run)


def verify(pid: int, end: Endpoint, run: Run = run_tool) -> dict[str, str]:
    """Read everything back; a DeviceError says what does not hold."""
    sysctls = known_sysctls(wanted_sysctls(end))
    with namespace_of(pid) as path:

        def ask(*argv: str) -> str:
            return run(entered(path, argv), "")

        seen = {
            **seen_interface(ask("ip", "-j", "-d", "address", "show", "dev", INTERFACE)),
            **seen_route(ask("ip", "-j", "route", "show", "dev", INTERFACE)),
            **seen_neighbours(ask("ip", "-j", "neighbour", "show", "dev", INTERFACE), end),
            **seen_sysctls(ask("sysctl", "-n", *sysctls), list(sysctls)),
        }
    wanted = expected(end, sysctls)
    wrong = [f"{k} {seen[k]!r}, expected {v!r}" for k, v in wanted.items() if seen[k] != v]
    if wrong:
        raise DeviceError(f"links: device {end.index}: not in force: {'; '.join(wrong)}")
    return seen


class AttachedDevices:
    """The devices of one network that have their link, by their number."""

    def __init__(self, links: Sequence[LinkSpec], dilation: float, run: Run = run_tool) -> None:
        """Prepare; too many addresses or too large a dilation for TCP's timers is a DeviceError."""
        self._ends = [Endpoint(index, len(links), dilation) for index in range(len(links))]
        self._run = run
        self._lock = threading.Lock()
        self._pids: dict[int, tuple[int, int | None]] = {}
        self._settings: dict[int, dict[str, str]] = {}

    def attach(self, interface: str, index: int, pid: int, source: str | None = None) -> str:
        """Make an interface (of the namespace `source`, or ours) `pid`'s own; gives its address."""
        settings = settle(interface, pid, self._ends[index], self._run, source)
        with self._lock:
            self._pids[index] = (pid, namespace_inode(pid))
            self._settings[index] = settings
        return address_of(index)

    def verify(self) -> None:
        """Raise a DeviceError unless all still holds on every device."""
        for index, pid in self._present():
            if pid is None:
                raise DeviceError(f"links: device {index} is gone")
            verify(pid, self._ends[index], self._run)

    def facts(self, ports: Sequence[Mapping[str, int]]) -> dict[str, object]:
        """For the record: settings as read back, and TCP's counters (None if gone)."""
        tcp = [None if pid is None else _counters(pid) for _, pid in self._present()]
        return {
            "settings": [self._settings[index] for index in sorted(self._settings)],
            "tcp": tcp,
            "unexplained_retransmissions": unexplained_retransmissions(ports, tcp),
        }

    def _present(self) -> list[tuple[int, int | None]]:
        """Every device with its process, None where that number no longer means its namespace."""
        with self._lock:
            pids = sorted(self._pids.items())
        return [(i, pid if namespace_inode(pid) == inode else None) for i, (pid, inode) in pids]


def _counters(pid: int) -> dict[str, int] | None:
    try:
        return tcp_counters(pid)
    except DeviceError:
        return None  # it ended just now
