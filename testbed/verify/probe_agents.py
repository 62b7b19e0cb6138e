"""The agents of a probe as the host sees them: started, asked, answered, ended.

A command goes to some agents at once. Each gives one line in answer, or is known to give none. A
device that did not answer in time is not asked again, because its late answer would be taken for
the next one's.
"""

import contextlib
import json
import queue
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated

from msgspec import Meta, Struct

from testbed.base import Device, DeviceError
from tpi.decode import decode
from tpi.program.process import Inbox, Process, make_inbox

# Without site packages the interpreter starts in a third of the time.
_PROGRAM = ("-S", "-m", "testbed.verify.probe_agent")
_MAX_STARTING = 4
# At 1 % of a core the interpreter's start takes some seconds.
_START_S = 60.0
_GRACE_S = 5.0
# Comes on top of what a task takes by itself.
ANSWER_S = 20.0


class Answer(Struct, frozen=True, forbid_unknown_fields=True):
    """A line of an agent: what it has measured, or in `message` why it has not.

    Attributes:
        event: The task, `up`, or `error`.
        port: On which it listens (`serve`).
        cpus: Cores that it had (`burn`); `read_bps` is of `disk`, `rate_bps` of `send`.
        rtts_s: Of every `ping`.
        bytes: How many were read or sent.
    """

    event: str
    message: str = ""
    port: int | None = None
    cpus: float | None = None
    read_bps: float | None = None
    rate_bps: float | None = None
    rtts_s: Annotated[list[float], Meta(min_length=1)] | None = None
    bytes: int | None = None

    @property
    def error(self) -> str:
        """What went wrong; empty if nothing did."""
        return self.message if self.event == "error" else ""


class Agents:
    """The agents of all devices; every command gets an answer or the reason why there is none."""

    def __init__(self, processes: Sequence[Process], inbox: Inbox) -> None:
        self._processes = processes
        self._inbox = inbox
        self._why_dead: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._processes)

    def ask(self, commands: Mapping[int, Mapping[str, object]], timeout_s: float) -> list[Answer]:
        """Send devices their commands and wait for all answers, which come in the same order.

        A device that does not answer within `timeout_s` is not asked again.
        """
        for device, command in commands.items():
            self._processes[device].send(json.dumps(command))
        return self.answers(commands, timeout_s)

    def answers(self, devices: Iterable[int], timeout_s: float) -> list[Answer]:
        """Wait for one line of each device."""
        wanted = list(devices)
        found: dict[int, Answer] = {}
        end_s = time.monotonic() + timeout_s
        while missing := [d for d in wanted if d not in found and d not in self._why_dead]:
            try:
                output = self._inbox.get(timeout=max(0.0, end_s - time.monotonic()))
            except queue.Empty:
                self._why_dead.update(dict.fromkeys(missing, f"no answer within {timeout_s:g} s"))
                break
            if output.exit is not None:
                self._why_dead[output.device] = _end_reason(output.exit.oom, output.exit.log_tail)
            elif output.device in missing:
                found[output.device] = _parse(output.line)
        return [found.get(d) or Answer("error", self._why_dead[d]) for d in wanted]

    def stop(self) -> None:
        """End all of them."""
        for process in self._processes:
            process.release()
        for process in self._processes:
            process.wait(_GRACE_S)
            process.stop()


@contextlib.contextmanager
def probe_agents(devices: Sequence[Device]) -> Iterator[Agents]:
    """An agent on each device, ready to obey."""
    inbox = make_inbox()
    started: list[Process] = []

    def start(device: Device) -> Process:
        process = device.run([device.python, *_PROGRAM], inbox)
        started.append(process)
        return process

    try:
        with ThreadPoolExecutor(_MAX_STARTING, "probe") as pool:
            processes = list(pool.map(start, devices))
        agents = Agents(processes, inbox)
        for device, answer in enumerate(agents.answers(range(len(devices)), _START_S)):
            if answer.event != "up":
                raise DeviceError(f"device {device}: the probe did not start: {answer.error}")
        yield agents
    finally:
        Agents(started, inbox).stop()


def _parse(line: bytes) -> Answer:
    try:
        return decode(line, Answer, "probe", DeviceError)
    except DeviceError:
        return Answer("error", f"not an answer: {line[:80]!r}")


def _end_reason(oom: bool, log_tail: str) -> str:
    if oom:
        return "the probe itself did not fit in the memory limit"
    last = log_tail.strip().splitlines()[-1:]
    return f"the probe ended: {last[0] if last else 'it said nothing'}"
