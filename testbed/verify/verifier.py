"""The proof that limits and links of a repeat's devices held: before, meanwhile and after.

`LimitVerifier.prove` is what a testbed's `prove` does: read it first. The measuring itself is that of
`probe.py`, what happened meanwhile is told by `conditions.py`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from testbed.base import Device, DeviceError, VerificationReport
from testbed.limits.cgroup import Cgroup
from testbed.verify.conditions import conditions_between
from testbed.verify.host_counters import CounterSnapshot, look
from testbed.verify.probe import probe_devices
from testbed.verify.tolerances import Expected, ProbeReport
from tpi.errors import ConfigError

BEFORE, AFTER = "before", "after"


class ProvableDevice(Device, Protocol):
    """A device with limits."""

    @property
    def cgroup(self) -> Cgroup:
        """Its control group."""

    def reset_meter(self) -> None:
        """Forget all peaks so far."""


class Links(Protocol):
    """What is asked of a network here; see `testbed.links.network.Network`."""

    def verify(self) -> None:
        """Read back whether everything that was set is still in force."""

    def counters(self) -> Mapping[str, Any]:
        """What was counted."""


class LimitVerifier:
    """The proof of one repeat: `prove("before")`, then the repeat, then `prove("after")`."""

    def __init__(
        self,
        devices: Sequence[ProvableDevice],
        expected: Sequence[Expected],
        network: Links,
        *,
        dilation: float = 1.0,
        host_read_bps: float | None = None,
        oversubscribed: bool = False,
        has_faults: bool = False,
        probe: Callable[..., ProbeReport] = probe_devices,
    ) -> None:
        """Prepare.

        Args:
            devices: Rank 0 first.
            expected: What holds on each.
            network: Their links.
            dilation: How much slower than the emulated clock this host's is.
            host_read_bps: What this host's disk gives.
            oversubscribed: Whether devices are known not to fit the host.
            has_faults: Whether links are to fail meanwhile.
            probe: Measures; for tests.
        """
        self._devices = tuple(devices)
        self._expected = tuple(expected)
        self._network = network
        self._dilation = dilation
        self._options = {"host_read_bps": host_read_bps, "oversubscribed": oversubscribed}
        self._may_resend = has_faults or any(e.link.loss_frac > 0 for e in expected)
        self._probe = probe
        self._begin: CounterSnapshot | None = None

    def prove(self, moment: str) -> VerificationReport:
        """Measure before or after a repeat; see `testbed.base.Testbed.prove`.

        Raises:
            DeviceError: A device or the network is gone.
        """
        if moment not in (BEFORE, AFTER):
            raise ConfigError(f"prove: got {moment!r}, expected {BEFORE!r} or {AFTER!r}")
        conditions = self._conditions() if moment == AFTER else VerificationReport()
        report = self._probe(
            self._devices, self._expected, dilation=self._dilation, **self._options
        )
        problems = [f"{moment} the run: {p}" for p in (*report.problems, *self._link_problems())]
        probed = VerificationReport({moment: report.to_json()}, tuple(problems))
        if moment == BEFORE:
            for device in self._devices:
                device.reset_meter()
            self._begin = self._look()
            probed = probed.joined(VerificationReport({"links": self._links_as_set()}))
        return conditions.joined(probed)

    def _conditions(self) -> VerificationReport:
        if self._begin is None:
            raise DeviceError("prove: after a run of which nothing was measured before")
        found = conditions_between(
            self._begin,
            self._look(),
            dilation=self._dilation,
            may_resend=self._may_resend,
            may_swap=any(e.limits.swap for e in self._expected),
        )
        return VerificationReport({"conditions": found.to_json()}, found.problems)

    def _links_as_set(self) -> dict[str, object]:
        """What emulates the links, and each device's interface, route and TCP as read back."""
        counters = self._begin.network if self._begin is not None else {}
        return {name: counters[name] for name in ("backend", "settings") if name in counters}

    def _link_problems(self) -> list[str]:
        try:
            self._network.verify()
        except DeviceError as exc:
            return [str(exc)]
        return []

    def _look(self) -> CounterSnapshot:
        return look([device.cgroup for device in self._devices], self._network.counters)
