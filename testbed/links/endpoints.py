"""The devices that have their end of a link: how each was set up, whether that holds, and its TCP.

What every kind of network does with its devices, apart from the links themselves.
"""

import threading
from collections.abc import Mapping, Sequence

from testbed.base import DeviceError
from testbed.links.link import LinkSpec
from testbed.links.namespace import Endpoint, Run, address_of, settle, verify
from testbed.links.nettools import namespace_inode, run_tool
from testbed.links.tcp_counters import tcp_counters, unexplained_retransmissions


class AttachedDevices:
    """Devices of one network, by their number."""

    def __init__(self, links: Sequence[LinkSpec], dilation: float, run: Run = run_tool) -> None:
        """Prepare.

        Raises:
            DeviceError: More devices than addresses, or a dilation that TCP's timers do not reach.
        """
        self._ends = [Endpoint(index, len(links), dilation) for index in range(len(links))]
        self._run = run
        self._lock = threading.Lock()
        self._pids: dict[int, tuple[int, int | None]] = {}
        self._settings: dict[int, dict[str, str]] = {}

    def attach(self, interface: str, index: int, pid: int, source: str | None = None) -> str:
        """Make an interface the link of a process's namespace; gives its address.

        Args:
            interface: Its name until then.
            index: The device.
            pid: A process in its namespace.
            source: Where the interface is (a path to a namespace); ours if None.
        """
        settings = settle(interface, pid, self._ends[index], self._run, source)
        with self._lock:
            self._pids[index] = (pid, namespace_inode(pid))
            self._settings[index] = settings
        return address_of(index)

    def verify(self) -> None:
        """Read back whether all still holds on every device.

        Raises:
            DeviceError: Something does not, or a device is gone.
        """
        for index, pid in self._present():
            if pid is None:
                raise DeviceError(f"links: device {index} is gone")
            verify(pid, self._ends[index], self._run)

    def facts(self, ports: Sequence[Mapping[str, int]]) -> dict[str, object]:
        """For the record, by device: settings as read back, and TCP's counters, None if gone.

        Args:
            ports: What the links counted.
        """
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
