"""Verifies that limits and links of a repeat's devices held: before, during and after it.

`probe.py` measures before and after; `conditions.py` says what happened in between.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Protocol

from testbed.base import Device, DeviceError, VerificationReport
from testbed.limits.cgroup import Cgroup
from testbed.links.network import Network
from testbed.verify.conditions import conditions_between
from testbed.verify.host_counters import CounterSnapshot, take_snapshot
from testbed.verify.probe import probe_devices
from testbed.verify.tolerances import Expected, ProbeReport
from tpi.errors import ConfigError

BEFORE, AFTER = "before", "after"


class LimitedDevice(Device, Protocol):
    """A device with limits."""

    @property
    def cgroup(self) -> Cgroup:
        """Its control group."""

    def reset_meter(self) -> None:
        """Forget all peaks so far."""


class LimitVerifier:
    """Verifies one repeat: `verify("before")`, then the repeat, then `verify("after")`."""

    def __init__(
        self,
        devices: Sequence[LimitedDevice],
        expected: Sequence[Expected],
        network: Network,
        *,
        dilation: float = 1.0,
        host_read_bps: float | None = None,
        oversubscribed: bool = False,
        has_faults: bool = False,
        probe: Callable[..., ProbeReport] = probe_devices,
    ) -> None:
        """Prepare; `has_faults` says that links are to fail, the rest is as in `probe_devices`."""
        self._devices = tuple(devices)
        self._expected = tuple(expected)
        self._network = network
        self._dilation = dilation
        self._options = {"host_read_bps": host_read_bps, "oversubscribed": oversubscribed}
        self._may_resend = has_faults or any(e.link.loss_frac > 0 for e in expected)
        self._probe = probe
        self._begin: CounterSnapshot | None = None

    def verify(self, moment: str) -> VerificationReport:
        """Measure before or after a repeat; see `testbed.base.Testbed.verify`."""
        if moment not in (BEFORE, AFTER):
            raise ConfigError(f"verify: got {moment!r}, expected {BEFORE!r} or {AFTER!r}")
        conditions = self._conditions() if moment == AFTER else VerificationReport()
        report = self._probe(
            self._devices, self._expected, dilation=self._dilation, **self._options
        )
        problems = [f"{moment} the run: {p}" for p in (*report.problems, *self._link_problems())]
        probed = VerificationReport({moment: report.to_json()}, tuple(problems))
        if moment == BEFORE:
            for device in self._devices:
                device.reset_meter()
            self._begin = self._snapshot()
            names = ("backend", "settings")
            as_set = {n: self._begin.network[n] for n in names if n in self._begin.network}
            probed = probed.joined(VerificationReport({"links": as_set}))
        return conditions.joined(probed)

    def _conditions(self) -> VerificationReport:
        if self._begin is None:
            raise DeviceError("verify: after a run of which nothing was measured before")
        found = conditions_between(
            self._begin,
            self._snapshot(),
            dilation=self._dilation,
            may_resend=self._may_resend,
            may_swap=any(e.limits.swap for e in self._expected),
        )
        return VerificationReport({"conditions": asdict(found)}, found.problems)

    def _link_problems(self) -> list[str]:
        try:
            self._network.verify()
        except DeviceError as exc:
            return [str(exc)]
        return []

    def _snapshot(self) -> CounterSnapshot:
        return take_snapshot([device.cgroup for device in self._devices], self._network.counters)
