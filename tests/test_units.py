import pytest

from tpi.errors import ConfigError
from tpi.units import counted, format_bytes, format_seconds, parse_bytes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4GiB", 4 << 30),
        ("600 MiB", 600 << 20),
        ("1.5g", 3 << 29),
        (1000, 1000),
        ("2GB", 2 * 10**9),
    ],
)
def test_sizes_are_read(text, expected):
    assert parse_bytes(text, "memory") == expected


@pytest.mark.parametrize("text", ["", "GiB", "-4GiB", "4 apples", "0", "1e9"])
def test_a_size_that_is_none_is_refused_by_name(text):
    with pytest.raises(ConfigError, match="memory_budget: got"):
        parse_bytes(text, "memory_budget")


def test_sizes_and_times_are_written_for_people():
    assert format_bytes(0) == "0 B"
    assert format_bytes(1536) == "1.5 KiB"
    assert format_bytes(1023 * 2**20) == "1023 MiB"
    assert format_seconds(0.0123) == "12.3 ms"
    assert format_seconds(5e-5) == "50 µs"
    assert format_seconds(61.24) == "61.2 s"


def test_a_count_has_its_noun_in_the_plural_unless_it_is_one():
    assert [counted(n, "run") for n in (0, 1, 2)] == ["0 runs", "1 run", "2 runs"]
