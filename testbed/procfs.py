"""Memory of a process tree as the kernel counts it, read from the host.

`VmHWM` is the resident set's high-water mark; for anonymous memory there is none, so it is
sampled. `/proc/PID/status` costs some 30 µs, `smaps_rollup` walks all page tables and costs
milliseconds for a large process: only the first is read.
"""

import threading
from collections.abc import Callable
from pathlib import Path

PROC = Path("/proc")
# 25 Hz: a peak that lasts a twentieth of a second is seen; eight devices take under 1 % of a core.
SAMPLE_INTERVAL_S = 0.04
# Looking for child processes costs one read per thread, so it is done more rarely.
_TREE_EVERY = 12


def read_memory(pid: int, proc: Path = PROC) -> tuple[int, int] | None:
    """(VmHWM, RssAnon) of a process in bytes; None if it is gone or a zombie."""
    try:
        text = (proc / str(pid) / "status").read_text()
    except OSError:
        return None
    values = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    if "VmHWM" not in values or "RssAnon" not in values:
        return None
    return _kib(values["VmHWM"]), _kib(values["RssAnon"])


def process_tree(pid: int, proc: Path = PROC) -> list[int]:
    """The process and all its descendants that still hang below it."""
    found = [pid]
    for parent in found:
        for task in _entries(proc / str(parent) / "task"):
            try:
                found += [int(child) for child in (task / "children").read_text().split()]
            except OSError:
                continue
    return found


def oom_kills(proc: Path = PROC) -> int:
    """How many processes the kernel's OOM killer has ended since boot; 0 if it does not say."""
    try:
        text = (proc / "vmstat").read_text()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("oom_kill "))


class PeakSampler:
    """Samples the trees of some processes from one thread, without spinning, until closed."""

    def __init__(self, pids: Callable[[], list[int]], proc: Path = PROC) -> None:
        self._pids = pids
        self._proc = proc
        self._tree: list[int] = []
        self._hwm: dict[int, int] = {}
        self.anon_peak = 0
        self.num_samples = 0
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._sample_on, name="meter", daemon=True)

    @property
    def rss_hwm(self) -> int:
        """Sum over all processes seen so far of their VmHWM, in bytes."""
        with self._lock:
            return sum(self._hwm.values())

    def start(self) -> None:
        """Start sampling."""
        self._thread.start()

    def sample(self) -> None:
        """Look once; safe from any thread."""
        with self._lock:
            self._sample()

    def close(self) -> None:
        """Stop sampling."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()

    def _sample(self) -> None:
        if self.num_samples % _TREE_EVERY == 0 or not self._tree:
            self._tree = [p for pid in self._pids() for p in process_tree(pid, self._proc)]
        anon = 0
        for pid in self._tree:
            memory = read_memory(pid, self._proc)
            if memory is not None:
                # The newest, not the largest: before its exec a child shows its parent's mark.
                self._hwm[pid] = memory[0]
                anon += memory[1]
        self.anon_peak = max(self.anon_peak, anon)
        self.num_samples += 1

    def _sample_on(self) -> None:
        while not self._closing.wait(SAMPLE_INTERVAL_S):
            self.sample()


def _kib(text: str) -> int:
    return int(text.split()[0]) * 1024


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []
