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
# The kernel's own peak is read once a second, because it goes with the container.
_PEAK_EVERY = 25


class ContainerMeter(PeakSampler):
    """Samples one container from a thread of its own, from `start` to `close`."""

    def __init__(self, pids: Callable[[], list[int]], cgroup: Cgroup, proc: Path = PROC) -> None:
        """Prepare; `pids` gives the host process numbers of the programs that run."""
        super().__init__(pids, proc)
        self._cgroup = cgroup
        self._charged_anon_peak = 0
        self._current_peak = 0
        self._kernel_peak: int | None = None
        # Where the kernel keeps no peak, or cannot reset it, the current charge is sampled too.
        self._samples_current = cgroup.memory_peak is None

    def reset(self) -> None:
        """Forget all peaks so far, as after a probe."""
        super().reset()
        self._samples_current = not self._cgroup.reset_peak()
        self._charged_anon_peak = self._current_peak = 0
        self._kernel_peak = None

    def read(self) -> Meters:
        """Sample once more, and give the peaks so far; from any thread, and after `close`."""
        self._sample_closely()
        sampled = self._samples_current
        return Meters(
            rss_hwm=self.rss_hwm,
            anon_peak=self._charged_anon_peak,
            cgroup_peak=self._current_peak if sampled else self._kernel_peak,
            num_samples=self.num_samples,
            words={"cgroup_peak": SAMPLED} if sampled else {},
        )

    def close(self) -> None:
        """Sample for the last time. Twice is fine."""
        super().close()
        self._sample_closely()

    def _sample_closely(self) -> None:
        self.sample()
        with contextlib.suppress(DeviceError):
            self._read_peak()

    def _sample(self) -> None:
        reads_peak = self.num_samples % _PEAK_EVERY == 0
        super()._sample()
        with contextlib.suppress(DeviceError):  # the container is gone
            self._charged_anon_peak = max(self._charged_anon_peak, self._cgroup.anon_bytes)
            if self._samples_current:
                self._current_peak = max(self._current_peak, self._cgroup.memory_current)
            elif reads_peak:
                self._read_peak()

    def _read_peak(self) -> None:
        peak = self._cgroup.memory_peak
        if peak is not None:  # else it is gone, or keeps none
            self._kernel_peak = peak
