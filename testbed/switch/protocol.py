"""The switch's command line and the lines on its standard input and output: text only.

Command line: `[--seed N] PORT [PORT ...]`, PORT = `NAME,DELAY_NS,RATE_BPS,QUEUE_BYTES,LOSS_PPM`.
Input, one command a line: `stats`, or `fault PORT KIND VALUE` with KIND and VALUE `cut 0|1`,
`delay NS` (added one way), `drop PPM` (in place of LOSS_PPM; -1 restores it), `duplicate PPM`.
Output, one JSON object a line: `ready` first, then one answer to each command, `error` among them.
"""

import json
import re

from testbed.switch.model import PPM, PortSpec, Switch
from tpi.errors import ConfigError

MAX_DELAY_NS = 10**12
MAX_RATE_BPS = 10**12
MAX_QUEUE_BYTES = 1 << 40
MAX_PORTS = 1024
MAX_LINE_BYTES = 4095
USAGE = "usage: switch [--seed N] NAME,DELAY_NS,RATE_BPS,QUEUE_BYTES,LOSS_PPM ..."
# The field of `Faults`, and the range of its values.
FAULTS = {
    "cut": ("cut", 0, 1),
    "delay": ("extra_ns", 0, MAX_DELAY_NS),
    "drop": ("drop_ppm", -1, PPM),
    "duplicate": ("duplicate_ppm", 0, PPM),
}
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,15}\Z")
_NUMBER = re.compile(r"-?[0-9]{1,19}\Z")


def error_line(message: str) -> str:
    """The line that says what was wrong."""
    return json.dumps({"event": "error", "message": message})


def _number(text: str, low: int, high: int) -> int:
    value = int(text) if _NUMBER.match(text) else low - 1
    if not low <= value <= high:
        raise ConfigError(f"expected a whole number from {low} to {high}, got {text[:40]!r}")
    return value


def parse_port(text: str) -> PortSpec:
    """One PORT of the command line."""
    fields = text.split(",")
    if len(fields) != 5 or not _NAME.match(fields[0]):
        raise ConfigError(USAGE)
    limits = (MAX_DELAY_NS, MAX_RATE_BPS, MAX_QUEUE_BYTES, PPM)
    numbers = [_number(f, 0, limit) for f, limit in zip(fields[1:], limits, strict=True)]
    return PortSpec(fields[0], *numbers)


def parse_arguments(argv: list[str]) -> tuple[list[PortSpec], int]:
    """The ports and the seed; a ConfigError if something is missing, malformed or out of range."""
    seed = 0
    if len(argv) > 1 and argv[0] == "--seed":
        seed, argv = _number(argv[1], 0, 2**63 - 1), argv[2:]
    if not 1 <= len(argv) <= MAX_PORTS:
        raise ConfigError(USAGE)
    return [parse_port(text) for text in argv], seed


class CommandLines:
    """Cuts what is read from standard input into lines; one that is too long becomes None."""

    def __init__(self) -> None:
        self._rest = b""
        self._too_long = False

    def feed(self, chunk: bytes) -> list[str | None]:
        """The lines that `chunk` completes."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        whole: list[str | None] = []
        for text in lines:
            too_long = self._too_long or len(text) > MAX_LINE_BYTES
            whole.append(None if too_long else text.decode("ascii", "replace"))
            self._too_long = False
        if len(self._rest) > MAX_LINE_BYTES:
            self._rest, self._too_long = b"", True
        return whole


def obey(switch: Switch, command: str | None) -> str:
    """Do what a line says and give the line that answers it."""
    if command is None:
        return error_line(f"a command of more than {MAX_LINE_BYTES} bytes")
    words = command.split()
    if words == ["stats"]:
        return json.dumps(stats(switch))
    if len(words) != 4 or words[0] != "fault":
        got = words[0][:40] if words else ""
        return error_line(f"expected 'stats' or 'fault PORT KIND VALUE', got {got!r}")
    try:
        return _fault(switch, *words[1:])
    except ConfigError as exc:
        return error_line(f"fault {' '.join(words[1:])[:120]}: {exc}")


def _fault(switch: Switch, port: str, kind: str, text: str) -> str:
    index = _number(port, 0, len(switch.ports) - 1)
    if kind not in FAULTS:
        raise ConfigError(f"unknown kind, expected {', '.join(FAULTS)}")
    field, low, high = FAULTS[kind]
    setattr(switch.ports[index].faults, field, _number(text, low, high))
    return json.dumps({"event": "fault", "port": index, "kind": kind})


def stats(switch: Switch) -> dict[str, object]:
    """All counters."""
    ports = [
        {
            f"{name}_{field}": getattr(line.counters, field)
            for name, line in (("up", port.up), ("down", port.down))
            for field in ("bytes", "packets", "dropped", "lost", "queue_max")
        }
        for port in switch.ports
    ]
    late = switch.late
    late_us = {"p50": late.share(0.5), "p99": late.share(0.99), "max": late.max_us}
    return {"event": "stats", "ports": ports, "late_us": late_us, "packets": late.count}
