"""Network namespaces joined by emulated links, for tests: nothing of the host's network is touched.

A namespace lives as long as the process in it, a `cat` that ends when this process does, since it
reads a pipe from it. `SwitchLinks` starts the switch and gives every namespace its TAP device.
Whatever makes the links, a test sees `Links`: namespaces to run programs in, faults and counters.
"""

import itertools
import json
import os
import select
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, Self

from testbed.links.link import LinkSpec
from testbed.switch.build import switch_command

ANSWER_S = 10.0
_END_S = 5.0
_serial = itertools.count()
# As the devices have it, so that a transfer is paced by the link and not by the sender's TCP.
_SYSCTLS = {
    "ipv6/conf/all/disable_ipv6": "1",
    "ipv4/tcp_congestion_control": "reno",
    "ipv4/tcp_slow_start_after_idle": "0",
    "ipv4/tcp_no_metrics_save": "1",
}


class Namespace:
    """One network namespace and the process that holds it."""

    def __init__(self) -> None:
        self.address = ""
        self._holder = subprocess.Popen(
            ["unshare", "--net", "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._holder.stdin is not None
        assert self._holder.stdout is not None
        self._holder.stdin.write(b"in\n")
        self._holder.stdin.flush()
        assert self._holder.stdout.readline() == b"in\n"  # the namespace is entered before cat runs

    @property
    def pid(self) -> int:
        return self._holder.pid

    def command(self, argv: Sequence[str]) -> list[str]:
        return ["nsenter", f"--net=/proc/{self.pid}/ns/net", *argv]

    def run(self, argv: Sequence[str], text: str = "", timeout_s: float = 30.0) -> str:
        """Run a program to its end and give its standard output; it must succeed."""
        done = subprocess.run(
            self.command(argv), input=text, capture_output=True, text=True, timeout=timeout_s
        )
        assert done.returncode == 0, f"{argv}: {done.stderr or done.stdout}"
        return done.stdout

    def popen(self, argv: Sequence[str]) -> subprocess.Popen[str]:
        """Start a program; its input and output are pipes of text lines."""
        pipe = subprocess.PIPE
        return subprocess.Popen(self.command(argv), stdin=pipe, stdout=pipe, text=True, bufsize=1)

    def close(self) -> None:
        """Let it go; twice is fine."""
        end(self._holder)


class Links(Protocol):
    """Namespaces that reach each other through emulated links, whatever emulates them."""

    @property
    def nodes(self) -> Sequence[Namespace]: ...

    def fault(self, index: int, kind: str, value: float) -> None:
        """`cut` 0 or 1, `delay` seconds, `drop` share or -1, `duplicate` share."""

    def counters(self) -> Mapping[str, Any]:
        """`ports`: per port `up_bytes`, `up_dropped`, ... as the switch says them."""

    def close(self) -> None: ...


class SwitchProcess:
    """A switch that was started, and its lines."""

    def __init__(self, command: Sequence[str], ports: Sequence[str]) -> None:
        self.popen = subprocess.Popen(
            [*command, *ports],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
        )
        self._rest = b""
        self.ready = self.read_line()

    def read_line(self, timeout_s: float = ANSWER_S) -> dict[str, Any]:
        """The next line on its standard output."""
        assert self.popen.stdout is not None
        while b"\n" not in self._rest:
            readable, _, _ = select.select([self.popen.stdout], [], [], timeout_s)
            assert readable, f"the switch says nothing for {timeout_s:g} s"
            chunk = os.read(self.popen.stdout.fileno(), 65536)
            assert chunk, f"the switch has ended: {self._rest!r}"
            self._rest += chunk
        line, self._rest = self._rest.split(b"\n", 1)
        answer = json.loads(line)
        assert isinstance(answer, dict)
        return answer

    def ask(self, command: str) -> dict[str, Any]:
        """Send a command and give its answer."""
        assert self.popen.stdin is not None
        self.popen.stdin.write(command.encode() + b"\n")
        return self.read_line()

    def close(self) -> None:
        """End its lease; twice is fine."""
        end(self.popen)


class SwitchLinks:
    """`Links` by the user-space switch."""

    def __init__(self, links: Sequence[LinkSpec], backend: str, seed: int = 1) -> None:
        stem = f"t{os.getpid() % 0xFFFFFF:x}x{next(_serial):x}x"
        self.names = [f"{stem}{i}" for i in range(len(links))]
        ports = [port_text(name, link) for name, link in zip(self.names, links, strict=True)]
        self._nodes: list[Namespace] = []
        self.switch = SwitchProcess(switch_command(backend), ["--seed", str(seed), *ports])
        try:
            assert self.switch.ready["event"] == "ready", self.switch.ready
            for index, name in enumerate(self.names):
                self._nodes.append(Namespace())
                attach(self._nodes[-1], name, index)
        except BaseException:
            self.close()
            raise

    @property
    def nodes(self) -> Sequence[Namespace]:
        return self._nodes

    def fault(self, index: int, kind: str, value: float) -> None:
        scale = {"cut": 1, "delay": 1e9, "drop": 1e6, "duplicate": 1e6}[kind]
        number = -1 if value < 0 else round(value * scale)
        answer = self.switch.ask(f"fault {index} {kind} {number}")
        assert answer == {"event": "fault", "port": index, "kind": kind}

    def counters(self) -> Mapping[str, Any]:
        return self.switch.ask("stats")

    def close(self) -> None:
        self.switch.close()
        for node in self._nodes:
            node.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def port_text(name: str, link: LinkSpec) -> str:
    """A port as the switch's command line has it."""
    rate_bps = round(link.rate_bps or 0)
    loss_ppm = round(link.loss_frac * 1e6)
    return f"{name},{round(link.delay_s * 1e9)},{rate_bps},{link.queue_bytes},{loss_ppm}"


def mac_of(index: int) -> str:
    return f"02:00:00:00:{(index + 1) >> 8:02x}:{(index + 1) & 255:02x}"


def attach(node: Namespace, device: str, index: int) -> None:
    """Move a host's device into a namespace as eth1, with an address and the TCP settings."""
    subprocess.run(
        ["ip", "link", "set", device, "netns", str(node.pid), "name", "eth1"], check=True
    )
    for name, value in _SYSCTLS.items():
        if Path("/proc/sys/net", name).exists():
            node.run(["tee", f"/proc/sys/net/{name}"], text=value)
    node.address = f"10.77.{index // 200}.{index % 200 + 1}"
    lines = [
        "link set lo up",
        f"link set eth1 address {mac_of(index)}",
        f"addr add {node.address}/16 dev eth1",
        "link set eth1 up",
    ]
    node.run(["ip", "-batch", "-"], text="\n".join(lines) + "\n")


def know_each_other(nodes: Sequence[Namespace]) -> None:
    """Fixed neighbours: no question about addresses falls into what is measured."""
    for node in nodes:
        lines = [
            f"neigh replace {other.address} lladdr {mac_of(i)} dev eth1 nud permanent\n"
            for i, other in enumerate(nodes)
            if other is not node
        ]
        node.run(["ip", "-batch", "-"], text="".join(lines))


def end(process: subprocess.Popen[Any]) -> None:
    """Close a process's input, which ends its lease, and reap it."""
    if process.stdin is not None:
        with suppress(OSError):
            process.stdin.close()
    try:
        process.wait(_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(_END_S)
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
