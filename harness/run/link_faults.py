"""Cuts, delays, drops and duplicates on links at moments of the measured request.

Moments count from the request's start, on the emulated clock. At its end all faults are undone, so
that links can be verified afterwards. The record keeps what was done and when.
"""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from harness.config.profiles import LinkFault
from harness.run.runner import Watch
from results.records.schema import LinkFaultDone
from testbed.base import Device, Testbed
from tpi.errors import TpiError
from tpi.program.events import Event
from tpi.ranks import MASTER_RANK

# What undoes each kind; a drop of -1 restores the link's own loss.
_UNDONE = {"cut": 0.0, "delay": 0.0, "drop": -1.0, "duplicate": 0.0}


@dataclass
class FaultyRun:
    """A watch that passes everything on, and starts the faults when the request begins.

    A context manager: faults that have not happened by its end are dropped.
    """

    watch: Watch
    testbed: Testbed
    faults: Sequence[LinkFault]
    request_id: str
    dilation: float
    log: list[LinkFaultDone] = field(default_factory=list)
    _timers: list[threading.Timer] = field(default_factory=list)

    def __enter__(self) -> "FaultyRun":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop()

    def _stop(self) -> None:
        for timer in self._timers:
            timer.cancel()
        for timer in self._timers:
            timer.join()
        self._timers = []

    def started(self, devices: Sequence[Device]) -> None:
        """All programs were started."""
        self.watch.started(devices)

    def event(self, event: Event) -> None:
        """A rank said something; the start of the measured request starts the clock."""
        if event.rank == MASTER_RANK and event.request_id == self.request_id:
            if event.name == "request":
                for fault in self.faults:
                    self._start(fault)
            elif event.name == "end":
                self._stop()
                self._undo()
        self.watch.event(event)

    def _start(self, fault: LinkFault) -> None:
        value = fault.value / 1e3 * self.dilation if fault.kind == "delay" else fault.value
        self._at(fault.at_s, fault, value)
        if fault.for_s is not None:
            self._at(fault.at_s + fault.for_s, fault, _UNDONE[fault.kind])

    def _at(self, moment_s: float, fault: LinkFault, value: float) -> None:
        timer = threading.Timer(moment_s * self.dilation, self._do, (fault, value))
        timer.daemon = True
        self._timers.append(timer)
        timer.start()

    def _undo(self) -> None:
        """Undo what was made and is still in force."""
        last = {(done.device, done.kind): done.value for done in self.log}
        for fault in self.faults:
            end = _UNDONE[fault.kind]
            if last.pop((fault.device, fault.kind), end) != end:
                self._do(fault, end)

    def _do(self, fault: LinkFault, value: float) -> None:
        error = ""
        try:
            self.testbed.fault(fault.device, fault.kind, value)
        except TpiError as exc:
            error = str(exc)
        now_ns = time.monotonic_ns()
        self.log.append(LinkFaultDone(fault.device, fault.kind, value, now_ns, error))
