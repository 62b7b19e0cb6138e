"""What is said of a program in a container, without one: status, and whose memory ran out."""

import pytest

from testbed.docker.exec_process import MemoryCounters, exit_code, judge_memory


@pytest.mark.parametrize(
    ("status", "code"),
    [(0, 0), (1, 1), (126, 126), (128, 128), (137, -9), (139, -11), (193, 193), (255, 255)],
)
def test_status_of_a_signal_is_its_negative_number(status, code):
    assert exit_code(status) == code


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        (MemoryCounters(3, 7, False), (False, False)),
        (MemoryCounters(3, 12, True), (False, False)),
        (MemoryCounters(4, 12, False), (True, False)),
        (MemoryCounters(4, 7, True), (True, False)),
        (MemoryCounters(4, 7, False), (False, True)),
    ],
    ids=[
        "nothing",
        "only reclaim",
        "the device's limit",
        "no count, but full",
        "the host's memory",
    ],
)
def test_out_of_memory_needs_a_kill_and_the_own_limit(after, expected):
    assert judge_memory(MemoryCounters(3, 7, False), after) == expected
