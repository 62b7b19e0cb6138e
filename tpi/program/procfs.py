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
