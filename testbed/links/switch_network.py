"""Links through the user-space switch: a TAP interface per device, joined by one process of ours.

The switch (`testbed/switch/`) reads commands from a pipe and ends with it; its interfaces end with
the switch. So nothing stays, however we end. `SwitchProcess` talks to it; `SwitchNetwork` gives
each device its interface.
"""

import contextlib
import queue
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from typing import IO

from msgspec import Struct

from testbed.base import DeviceError
from testbed.links.endpoints import AttachedDevices
from testbed.links.link import LinkSpec
from testbed.links.linkfault import check_fault
from testbed.links.nettools import end_by_pipe, tool_environment
from tpi.decode import decode

# Making an interface waits for the kernel's network lock, which many containers may hold.
_READY_S = 20.0
_ANSWER_S = 10.0
_END_S = 5.0
_PPM = 1e6
_LABEL_DIGITS = 6
_LOG_TAIL_BYTES = 2000


class SwitchEvent(Struct, frozen=True, forbid_unknown_fields=True):
    """A line of the switch: `ready`, `stats`, `fault`, or `error` with a message."""

    event: str
    message: str = ""
    backend: str = ""
    fifo: bool = False
    ports: tuple[Mapping[str, int], ...] = ()
    late_us: Mapping[str, int] = {}
    packets: int = 0
    port: int | None = None
    kind: str = ""


# Tells that the switch has ended.
_END = SwitchEvent("")


def interface_names(label: str, num_devices: int) -> list[str]:
    """Names of the host's ends: `tpi`, six hex digits of the label, the device's number."""
    digits = label[:_LABEL_DIGITS]
    if len(digits) < _LABEL_DIGITS or not set(digits) <= set("0123456789abcdef"):
        raise DeviceError(f"links: label {label!r}: expected {_LABEL_DIGITS} hex digits or more")
    return [f"tpi{digits}{index}" for index in range(num_devices)]


def port_argument(name: str, link: LinkSpec) -> str:
    """One port of the switch's command line, in its units."""
    rate_bps = 0 if link.rate_bps is None else round(link.rate_bps)
    loss_ppm = round(link.loss_frac * _PPM)
    return f"{name},{round(link.delay_s * 1e9)},{rate_bps},{link.queue_bytes},{loss_ppm}"


def fault_command(index: int, kind: str, value: float) -> str:
    """One fault in the switch's units; one that does not exist is a ConfigError."""
    check_fault(kind, value)
    factor = {"cut": 1.0, "delay": 1e9, "drop": _PPM, "duplicate": _PPM}[kind]
    return f"fault {index} {kind} {-1 if value < 0 else round(value * factor)}"


class SwitchNetwork:
    """Links of the user-space switch; see `testbed.links.network.Network`."""

    def __init__(
        self, command: Sequence[str], links: Sequence[LinkSpec], *, dilation: float, label: str
    ) -> None:
        """Start the switch by `command` and its ports; interfaces are named after `label`."""
        self._names = interface_names(label, len(links))
        self._devices = AttachedDevices(links, dilation)
        ports = [port_argument(*port) for port in zip(self._names, links, strict=True)]
        self._switch = SwitchProcess([*command, *ports])
        self.backend = f"switch-{self._switch.ready.backend}"

    def attach(self, index: int, pid: int) -> str:
        """Give the namespace of a process its link; gives the device's address."""
        self._switch.check()
        return self._devices.attach(self._names[index], index, pid)

    def fault(self, index: int, kind: str, value: float) -> None:
        """Cut, delay, drop or duplicate on one link; in force when this returns."""
        self._switch.ask(fault_command(index, kind, value), "fault")

    def verify(self) -> None:
        """Read back whether the switch runs and every device's settings hold."""
        self._switch.check()
        self._devices.verify()

    def counters(self) -> dict[str, object]:
        """What the switch and every device's TCP counted."""
        counted = self._switch.ask("stats", "stats")
        ports = [dict(port) for port in counted.ports]
        if len(ports) != len(self._names):
            raise DeviceError(f"switch: stats: expected {len(self._names)} ports, got {ports!r}")
        return {
            "backend": self.backend,
            "ports": ports,
            "late_us": dict(counted.late_us),
            "packets": counted.packets,
            **self._devices.facts(ports),
        }

    def close(self) -> None:
        """End the switch and with it all links. Twice is fine."""
        self._switch.close()


class SwitchProcess:
    """The running switch."""

    def __init__(
        self, argv: Sequence[str], ready_s: float = _READY_S, answer_s: float = _ANSWER_S
    ) -> None:
        """Start it and wait until it is ready, or raise a DeviceError."""
        self._lock = threading.Lock()
        self._answer_s = answer_s
        self._events: queue.Queue[SwitchEvent] = queue.Queue()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process; see close
        try:
            self._popen = subprocess.Popen(
                list(argv),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                env=tool_environment(),
                start_new_session=True,  # Ctrl-C is for us; it ends with its pipe
            )
        except OSError as exc:
            self._log.close()
            raise DeviceError(f"switch: cannot start {argv[0]}: {exc.strerror}") from exc
        self._reader = threading.Thread(target=self._read, name="switch", daemon=True)
        try:
            self._reader.start()
            self.ready = self._answer("ready", ready_s)
        except BaseException:
            self.close()
            raise

    def ask(self, command: str, event: str) -> SwitchEvent:
        """Send one command and give its answer; a refusal or none in time is a DeviceError."""
        with self._lock:
            stdin = self._pipe(self._popen.stdin)
            try:
                stdin.write(command.encode("ascii") + b"\n")
                stdin.flush()
            except (OSError, ValueError) as exc:
                raise self._gone() from exc
            return self._answer(event, self._answer_s)

    def check(self) -> None:
        """Raise a DeviceError if it has ended."""
        if self._popen.poll() is not None:
            raise self._gone()

    def close(self) -> None:
        """End it and with it its interfaces. Twice is fine."""
        end_by_pipe(self._popen)
        if self._reader.ident is not None:
            self._reader.join(_END_S)
        self._log.close()

    def _read(self) -> None:
        """Hand on its events."""
        with self._pipe(self._popen.stdout) as stdout:
            for line in stdout:
                try:
                    event = decode(line, SwitchEvent, "switch", DeviceError)
                except DeviceError:
                    event = SwitchEvent("error", f"not an event: {line[:80]!r}")
                self._events.put(event)
        self._events.put(_END)

    def _answer(self, event: str, timeout_s: float) -> SwitchEvent:
        try:
            answer = self._events.get(timeout=timeout_s)
        except queue.Empty:
            self._popen.kill()  # a late answer must not be taken for the next one's
            raise DeviceError(f"switch: no {event!r} after {timeout_s:g} s") from None
        if answer is _END:
            self._events.put(_END)  # for the next question
            raise self._gone()
        if answer.event != event:
            what = answer.message or answer
            raise DeviceError(f"switch: expected {event!r}, got: {what}")
        return answer

    def _gone(self) -> DeviceError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(1.0)  # its pipe may close just before it has ended
        return DeviceError(f"switch: ended (exit status {self._popen.returncode}): {self._tail()}")

    def _tail(self) -> str:
        """The last line of its standard error."""
        try:
            end = self._log.seek(0, 2)
            self._log.seek(max(0, end - _LOG_TAIL_BYTES))
            lines = self._log.read().decode("utf-8", "replace").split("\n")
        except ValueError:
            return "it was closed"
        return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")

    @staticmethod
    def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
        if stream is None:
            raise DeviceError("switch: has no pipe")
        return stream
