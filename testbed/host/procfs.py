"""Memory of a process tree as the kernel counts it, read from the host.

`VmHWM` is the resident set's high-water mark; for anonymous memory there is none, so it is
sampled. `/proc/PID/status` costs some 30 µs; `smaps_rollup` walks all page tables and costs
milliseconds for a large process, so it is not read.
"""

import os
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
        text = read_small(f"{proc}/{pid}/status")
    except OSError:
        return None
    hwm_kib, anon_kib = number_after(text, b"VmHWM:"), number_after(text, b"RssAnon:")
    return None if hwm_kib is None or anon_kib is None else (hwm_kib * 1024, anon_kib * 1024)


def read_small(path: str) -> bytes:
    """A kernel's file of at most 16 KiB, in a third of the time of `Path.read_text`."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(handle, 16 << 10)
    finally:
        os.close(handle)


def number_after(text: bytes, name: bytes) -> int | None:
    """The number that follows a name at the start of a line; None if there is no such line."""
    at = 0 if text.startswith(name) else text.find(b"\n" + name) + 1
    if at == 0 and not text.startswith(name):
        return None
    return int(text[at + len(name) :].split(None, 1)[0])


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


def read_stat(pid: int, proc: Path = PROC) -> list[str] | None:
    """What follows the name in `/proc/PID/stat`, its state first; None if it is gone."""
    try:
        text = (proc / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    # The name is in brackets and may hold brackets and spaces itself.
    return text.rpartition(")")[2].split() or None


def session_of(pid: int, proc: Path = PROC) -> int | None:
    """The session of a process, which is the number of its leader; None if it is gone."""
    fields = read_stat(pid, proc)
    return None if fields is None else int(fields[3])


def meminfo(proc: Path = PROC) -> dict[str, int]:
    """The host's memory in bytes, by the kernel's names; empty if it does not say."""
    values = {}
    for line in _text(proc / "meminfo").splitlines():
        name, _, rest = line.partition(":")
        if rest.split():
            values[name] = int(rest.split()[0]) * 1024
    return values


def host_swap_bytes(proc: Path = PROC) -> int:
    """Swap of this host, used or not."""
    return meminfo(proc).get("SwapTotal", 0)


class PeakSampler:
    """Samples the trees of some processes from one thread, without spinning, until closed."""

    def __init__(self, pids: Callable[[], list[int]], proc: Path = PROC) -> None:
        """Prepare; `pids` gives the roots of the trees."""
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
        """Sample once; safe from any thread."""
        with self._lock:
            self._sample()

    def reset(self) -> None:
        """Forget all peaks so far."""
        with self._lock:
            self._tree, self._hwm = [], {}
            self.anon_peak = self.num_samples = 0

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
                # The newest, not the largest: before its exec a child shows its parent's peak.
                self._hwm[pid] = memory[0]
                anon += memory[1]
        self.anon_peak = max(self.anon_peak, anon)
        self.num_samples += 1

    def _sample_on(self) -> None:
        while not self._closing.wait(SAMPLE_INTERVAL_S):
            self.sample()


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []
