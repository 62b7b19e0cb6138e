"""The network that joins devices: emulated links by the means that this host has.

`open_network` gives a `Network`: netem in the kernel (`netem.py`), or the user-space switch in C or
Python (`switch_network.py`). Its `backend` says which it is. `capabilities` says what works here.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from testbed.base import DeviceError
from testbed.links.link import LinkSpec
from testbed.links.netem import NetemNetwork, netem_problem
from testbed.links.nettools import HeldNamespace
from testbed.links.switch_network import SwitchNetwork, port_argument
from testbed.switch.build import switch_command
from tpi.errors import ConfigError

BACKENDS = ("auto", "netem", "switch", "switch-c", "switch-python", "none")
_SWITCH_LANGUAGES = {"auto": "auto", "switch": "auto", "switch-c": "c", "switch-python": "python"}
_STATUS = Path("/proc/self/status")
_TUN = Path("/dev/net/tun")
_CAPABILITY_BITS = {"CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21}


class Network(Protocol):
    """The links of all devices of a run."""

    @property
    def backend(self) -> str:
        """What emulates them: netem, switch-c, switch-python or none."""

    def attach(self, index: int, pid: int) -> str:
        """Give a process's namespace its link, and read it back; gives the device's address."""

    def fault(self, index: int, kind: str, value: float) -> None:
        """Make or end a fault of one link; see `testbed.links.linkfault`."""

    def verify(self) -> None:
        """Raise a DeviceError unless links and settings of all devices are still in force."""

    def counters(self) -> dict[str, object]:
        """For the record, while the devices are up: `ports` and, by device, `settings`, `tcp`."""

    def close(self) -> None:
        """Take all links away. Twice is fine."""


class _NoNetwork(Network):
    """One device alone needs no links: its address is its loopback's."""

    backend = "none"

    def attach(self, index: int, pid: int) -> str:  # noqa: ARG002 - the protocol's
        return "127.0.0.1"

    def fault(self, index: int, kind: str, value: float) -> None:
        raise DeviceError(f"links: no fault {kind} {value:g} on device {index}: backend is none")

    def verify(self) -> None: ...

    def counters(self) -> dict[str, object]:
        return {"backend": self.backend}

    def close(self) -> None: ...


def open_network(
    links: Sequence[LinkSpec], *, backend: str = "auto", dilation: float = 1.0, label: str
) -> Network:
    """Make the links of all devices, as emulated on this host (already dilated).

    `backend` `auto` takes netem where the kernel has it and the switch elsewhere; `switch` is C
    where a compiler is and Python elsewhere. `dilation` is for TCP's timers. The first six hex
    digits of `label` name what is visible on the host.

    Raises:
        ConfigError: No such backend.
        DeviceError: It cannot work here; says what would mend it.
    """
    if backend not in BACKENDS:
        raise ConfigError(f"link.backend: got {backend!r}, expected one of {', '.join(BACKENDS)}")
    if not links:
        raise DeviceError("links: none described")
    if backend == "none":
        if len(links) > 1:
            raise DeviceError(f"links: {len(links)} devices need links, link.backend is 'none'")
        return _NoNetwork()
    _require(_rights_problem())
    if backend in ("auto", "netem"):
        problem = netem_problem()
        if problem is None:
            return NetemNetwork(links, dilation=dilation)
        _require(problem if backend == "netem" else None)
    _require(_tap_problem())
    command = switch_command(_SWITCH_LANGUAGES[backend])
    return SwitchNetwork(command, links, dilation=dilation, label=label)


def require_links(backend: str) -> None:
    """Refuse early what `open_network` would refuse: missing rights, or a named backend."""
    _require(_rights_problem())
    if backend == "netem":
        _require(netem_problem())


def capabilities() -> dict[str, str | None]:
    """By backend, whether it was tried and works (None), or why not and what would mend it."""
    rights = _rights_problem()
    if rights is not None:
        return dict.fromkeys(("netem", "switch-c", "switch-python"), rights)
    tap = _tap_problem()
    return {
        "netem": netem_problem(),
        "switch-c": tap or _switch_problem("c"),
        "switch-python": tap or _switch_problem("python"),
    }


def _require(problem: str | None) -> None:
    if problem is not None:
        raise DeviceError(f"links: {problem}")


def _rights_problem(status: Path = _STATUS) -> str | None:
    """Why we may not make interfaces and enter namespaces; None if we may."""
    lines = status.read_text(encoding="ascii").splitlines()
    effective = int(next(line for line in lines if line.startswith("CapEff:")).split()[1], 16)
    missing = [name for name, bit in _CAPABILITY_BITS.items() if not effective >> bit & 1]
    if not missing:
        return None
    return f"emulated links need {' and '.join(missing)}: run as root (sudo)"


def _tap_problem(tun: Path = _TUN) -> str | None:
    """Why no TAP interface can be made; None if one was made."""
    if not tun.exists():
        return f"{tun} is missing: modprobe tun, or mknod -m 666 {tun} c 10 200"
    return _problem(["ip", "tuntap", "add", "dev", "probe", "mode", "tap"])


def _switch_problem(language: str) -> str | None:
    """Why this switch does not run; None if it did. Without input it ends once it is ready."""
    try:
        return _problem([*switch_command(language), port_argument("probe", LinkSpec())])
    except DeviceError as exc:
        return str(exc)


def _problem(command: Sequence[str]) -> str | None:
    """Why a command fails in a namespace of our own."""
    try:
        with HeldNamespace() as namespace:
            namespace.run(command)
    except DeviceError as exc:
        return str(exc).removeprefix("links: ")
    return None
