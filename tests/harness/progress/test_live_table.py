import pytest

from harness.progress.live_table import format_clock, format_memory

MIB = 1 << 20


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.9, "0:59"), (725, "12:05"), (3723, "1:02:03")]
)
def test_format_clock(seconds, text):
    assert format_clock(seconds) == text


@pytest.mark.parametrize(
    ("peaks", "is_wide", "text"),
    [
        ((), True, ""),
        ((None, None), True, ""),
        ((312 * MIB,), False, "312 MiB"),
        ((312 * MIB, 98.5 * MIB, None), True, "312 98.5 ? MiB"),
        ((1536 * MIB, 512 * MIB), True, "1.5 0.5 GiB"),
        ((312 * MIB, 98 * MIB), False, "2x ≤312 MiB"),
        ((1023 * MIB,) * 7, True, "1023 1023 1023 1023 1023 1023 1023 MiB"),
        ((312 * MIB,) * 8, True, "8x ≤312 MiB"),
    ],
)
def test_format_memory(peaks, is_wide, text):
    assert format_memory(peaks, is_wide=is_wide) == text
