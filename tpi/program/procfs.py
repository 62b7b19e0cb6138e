"""What the kernel says about this process."""

from pathlib import Path


def peak_rss_bytes() -> int:
    """Largest resident set of this process so far (VmHWM), the paper's measure of peak memory."""
    return own_number("status", "VmHWM") * 1024


def own_number(file: str, key: str) -> int:
    """The number behind `key:` in `/proc/self/<file>`; 0 where the kernel does not say."""
    try:
        text = Path("/proc/self", file).read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0])
    return 0


def oom_kills(proc: Path = Path("/proc")) -> int:
    """How many processes the kernel's OOM killer has ended since boot; 0 if it does not say."""
    try:
        text = (proc / "vmstat").read_text()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("oom_kill "))
