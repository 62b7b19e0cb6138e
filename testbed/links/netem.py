"""Links through the kernel's netem, shaped in the middle, never at the sender.

Every device has a veth pair. The core's ends are in a namespace of our own, joined by a bridge.
What comes from a device is redirected through an ifb interface, the up-link; what goes to it leaves
through the core's end, the down-link. Both have one netem: the delays on both ends of a path add
up, and each direction has its rate. Pure functions make the commands; `NetemNetwork` runs them and
reads back that the kernel has them.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from testbed.base import DeviceError
from testbed.links.endpoints import AttachedDevices, known_sysctls, mac_of, sysctl_command
from testbed.links.link import MTU_BYTES, LinkSpec
from testbed.links.linkfault import AS_SPECIFIED, check_fault
from testbed.links.nettools import HeldNamespace, namespace_of

_ETHERNET_BYTES = 14
# A link without a rate may hold what 100 Gbit/s have under way in some 10 ms.
_UNLIMITED_PACKETS = 100_000
CORE_SYSCTLS = {
    # Interfaces of the core have no addresses and must not look for any.
    "net.ipv6.conf.all.disable_ipv6": "1",
    "net.ipv6.conf.default.disable_ipv6": "1",
}


@dataclass(frozen=True, slots=True)
class LinkFaults:
    """The faults of a link at the moment, by their kinds; with `drop` None it has its own loss."""

    cut: float = 0.0
    delay: float = 0.0  # seconds more
    drop: float | None = None
    duplicate: float = 0.0

    def with_fault(self, kind: str, value: float) -> "LinkFaults":
        """The same but for one fault; one that does not exist is a ConfigError."""
        check_fault(kind, value)
        change: dict[str, Any] = {kind: None if value == AS_SPECIFIED else value}
        return replace(self, **change)


def core_end(index: int) -> str:
    """The core's end of a device's veth pair; its egress is the down-link."""
    return f"core{index}"


def device_end(index: int) -> str:
    """The other end, until the device has it."""
    return f"device{index}"


def up_link(index: int) -> str:
    """The ifb interface whose egress is the up-link."""
    return f"up{index}"


def core_batch(num_devices: int) -> str:
    """Lines for `ip -batch` in the core: the bridge, and all interfaces."""
    lines = ["link add name bridge type bridge stp_state 0 forward_delay 0 mcast_snooping 0"]
    for index in range(num_devices):
        core, device, up = core_end(index), device_end(index), up_link(index)
        lines += [
            f"link add name {core} type veth peer name {device}",
            f"link add name {up} type ifb",
            # One packet is one MTU on the link: a burst of many in one would pass as one.
            f"link set dev {core} gso_max_segs 1 master bridge up",
            f"link set dev {up} gso_max_segs 1 up",
        ]
    return _joined([*lines, "link set dev bridge up"])


def fdb_batch(num_devices: int) -> str:
    """Lines for `bridge -batch`: every device's place, so that nothing is flooded to find it."""
    return _joined(
        line
        for index in range(num_devices)
        for line in (
            f"link set dev {core_end(index)} learning off flood off",
            f"fdb add {mac_of(index)} dev {core_end(index)} master static",
        )
    )


def redirect_batch(num_devices: int) -> str:
    """Lines for `tc -batch`: what comes from a device takes its up-link first."""
    return _joined(
        line
        for index in range(num_devices)
        for line in (
            f"qdisc add dev {core_end(index)} handle ffff: ingress",
            f"filter add dev {core_end(index)} parent ffff: protocol all u32 match u32 0 0"
            f" action mirred egress redirect dev {up_link(index)}",
        )
    )


def queue_packets(link: LinkSpec, extra_delay_s: float = 0.0) -> int:
    """What netem may hold: it counts packets of any size, those under way as well as queued."""
    waiting = math.ceil(link.queue_bytes / MTU_BYTES)
    if link.rate_bps is None:
        return _UNLIMITED_PACKETS + waiting
    under_way_bytes = link.rate_bps * (link.delay_s + extra_delay_s) / 8
    return math.ceil(under_way_bytes / MTU_BYTES) + waiting + 1


def netem_arguments(link: LinkSpec, faults: LinkFaults) -> str:
    """One direction of a link, always whole: `change` would reset what is left out."""
    loss_frac = link.loss_frac if faults.drop is None else faults.drop
    loss_frac = 1.0 if faults.cut else loss_frac
    delay_us = (link.delay_s + faults.delay) * 1e6
    words = [f"limit {queue_packets(link, faults.delay)}", f"delay {delay_us:.3f}us"]
    if loss_frac > 0:
        words.append(f"loss random {loss_frac * 100:.6f}%")
    if faults.duplicate > 0:
        words.append(f"duplicate {faults.duplicate * 100:.6f}%")
    if link.rate_bps is not None:
        # Negative overhead: rates count IP bytes, not Ethernet's.
        words.append(f"rate {round(link.rate_bps)}bit {-_ETHERNET_BYTES}")
    return " ".join(words)


def shape_batch(
    links: Mapping[int, LinkSpec], faults: Mapping[int, LinkFaults], verb: str = "add"
) -> str:
    """Lines for `tc -batch`: both directions of these links."""
    return _joined(
        f"qdisc {verb} dev {interface} root handle 1: netem"
        f" {netem_arguments(link, faults.get(index, LinkFaults()))}"
        for index, link in links.items()
        for interface in (up_link(index), core_end(index))
    )


def is_shaped(qdiscs: str, num_devices: int) -> bool:
    """Whether `tc -j qdisc show` has netem on both directions of every link."""
    shaped = {entry["dev"] for entry in json.loads(qdiscs) if entry.get("kind") == "netem"}
    ends = range(num_devices)
    return shaped >= {core_end(i) for i in ends} | {up_link(i) for i in ends}


def port_counters(qdiscs: str, num_devices: int) -> list[dict[str, int]]:
    """By device, from `tc -s -j qdisc show`, in IP bytes."""
    netems = {entry["dev"]: entry for entry in json.loads(qdiscs) if entry.get("kind") == "netem"}
    ports = []
    for index in range(num_devices):
        port: dict[str, int] = {}
        for name, interface in (("up", up_link(index)), ("down", core_end(index))):
            counted = netems[interface]
            num_packets = int(counted["packets"])
            port[f"{name}_bytes"] = int(counted["bytes"]) - num_packets * _ETHERNET_BYTES
            port[f"{name}_packets"] = num_packets
            port[f"{name}_dropped"] = int(counted["drops"])
        ports.append(port)
    return ports


class NetemNetwork:
    """Links of the kernel's netem; see `testbed.links.network.Network`."""

    backend = "netem"

    def __init__(self, links: Sequence[LinkSpec], *, dilation: float) -> None:
        """Make the core and shape all links; a DeviceError if the kernel cannot."""
        self._links = tuple(links)
        self._faults: dict[int, LinkFaults] = {}
        self._devices = AttachedDevices(links, dilation)
        self._core = HeldNamespace()
        try:
            self._build()
        except BaseException:
            self.close()
            raise

    def attach(self, index: int, pid: int) -> str:
        """Give the namespace of a process its link; gives the device's address."""
        # Moved straight from one to the other: in our own namespace the host would see it.
        with namespace_of(self._core.pid) as core:
            return self._devices.attach(device_end(index), index, pid, source=core)

    def fault(self, index: int, kind: str, value: float) -> None:
        """Cut, delay, drop or duplicate on one link; in force when this returns."""
        faults = self._faults.get(index, LinkFaults()).with_fault(kind, value)
        batch = shape_batch({index: self._links[index]}, {index: faults}, "change")
        self._core.run(["tc", "-batch", "-"], batch)
        self._faults[index] = faults

    def verify(self) -> None:
        """Read back whether every link is shaped and every device's settings hold."""
        self._check_shapes()
        self._devices.verify()

    def counters(self) -> dict[str, object]:
        """What the qdiscs and every device's TCP counted."""
        qdiscs = self._core.run(["tc", "-s", "-j", "qdisc", "show"])
        ports = port_counters(qdiscs, len(self._links))
        return {"backend": self.backend, "ports": ports, **self._devices.facts(ports)}

    def close(self) -> None:
        """End the core and with it all links. Twice is fine."""
        self._core.close()

    def _build(self) -> None:
        num_devices = len(self._links)
        self._core.run(sysctl_command(known_sysctls(CORE_SYSCTLS)))
        self._core.run(["ip", "-batch", "-"], core_batch(num_devices))
        self._core.run(["bridge", "-batch", "-"], fdb_batch(num_devices))
        shapes = shape_batch(dict(enumerate(self._links)), self._faults)
        self._core.run(["tc", "-batch", "-"], redirect_batch(num_devices) + shapes)
        self._check_shapes()

    def _check_shapes(self) -> None:
        if not is_shaped(self._core.run(["tc", "-j", "qdisc", "show"]), len(self._links)):
            raise DeviceError("links: netem is not in force on every link")


def netem_problem() -> str | None:
    """Why netem cannot be had; None if one whole link was made, in a namespace of our own."""
    link = LinkSpec(delay_s=0.001, rate_bps=1e6)
    try:
        NetemNetwork([link], dilation=1.0).close()
    except DeviceError as exc:
        return f"netem: {str(exc).removeprefix('links: ')}; link.backend=switch needs none"
    return None


def _joined(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)
