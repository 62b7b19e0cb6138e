"""Peak memory of a container, three ways, sampled from the host; see `testbed.base.Meters`.

The resident set's peak comes from the programs themselves; anonymous memory and the charged peak
come from the control group, which also counts what no process maps. All are kept when the container
is gone.
"""

import contextlib
from collections.abc import Callable
from pathlib import Path

from testbed.base import DeviceError, Meters
from testbed.host.procfs import PROC, PeakSampler
from testbed.limits.cgroup import Cgroup

SAMPLED = "largest of samples, 25 a second: this kernel keeps no peak, or not since the reset"
# The kernel's own peak is read once a second, lest a container takes it along.
_PEAK_EVERY = 25


class ContainerMeter:
    """Samples one container from a thread of its own, from `start` to `close`."""

    def __init__(self, pids: Callable[[], list[int]], cgroup: Cgroup, proc: Path = PROC) -> None:
        """Prepare; `pids` gives the host process numbers of the programs that run."""
        self._cgroup = cgroup
        self._sampler = PeakSampler(pids, proc, also=self._look)
        self._anon_peak = 0
        self._current_peak = 0
        self._kernel_peak: int | None = None
        # Where the kernel keeps no peak, or cannot forget one, what is charged is sampled too.
        self._samples_current = cgroup.memory_peak is None
        self._num_looks = 0

    def start(self) -> None:
        """Start sampling."""
        self._sampler.start()

    def reset(self) -> None:
        """Forget all peaks so far, as after a probe."""
        self._sampler.reset()
        self._samples_current = not self._cgroup.reset_peak()
        self._anon_peak = self._current_peak = self._num_looks = 0
        self._kernel_peak = None

    def read(self) -> Meters:
        """Look once more, and give the peaks so far; from any thread, and after `close`."""
        self._look_closely()
        sampled = self._samples_current
        return Meters(
            rss_hwm=self._sampler.rss_hwm,
            anon_peak=self._anon_peak,
            cgroup_peak=self._current_peak if sampled else self._kernel_peak,
            num_samples=self._sampler.num_samples,
            words={"cgroup_peak": SAMPLED} if sampled else {},
        )

    def close(self) -> None:
        """Look for the last time. Twice is fine."""
        self._sampler.close()
        self._look_closely()

    def _look_closely(self) -> None:
        self._sampler.sample()
        with contextlib.suppress(DeviceError):
            self._read_peak()

    def _look(self) -> None:
        with contextlib.suppress(DeviceError):  # the container is gone
            self._anon_peak = max(self._anon_peak, self._cgroup.anon_bytes)
            if self._samples_current:
                self._current_peak = max(self._current_peak, self._cgroup.memory_current)
            elif self._num_looks % _PEAK_EVERY == 0:
                self._read_peak()
        self._num_looks += 1

    def _read_peak(self) -> None:
        peak = self._cgroup.memory_peak
        if peak is not None:  # else it is gone, or keeps none
            self._kernel_peak = peak
