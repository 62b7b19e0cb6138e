"""Refusals of `tpi.decode` name the key, what was expected and what was found."""

from typing import Annotated, Literal

import msgspec
import pytest
from msgspec import Meta

from tpi.decode import Count, Text, convert, decode
from tpi.errors import ConfigError

COUNT = "an integer in 1..2147483648"


class Inner(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    count: Count
    word: Literal["x", "y"] = "x"
    share: Annotated[float, Meta(ge=0, le=1)] | None = None


class Outer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    items: list[Inner]
    sizes: dict[str, int] = {}
    parts: dict[str, Inner] = {}
    name: Text = "a"
    flag: bool = False
    ids: tuple[Annotated[int, Meta(ge=0)], ...] = ()
    code: Annotated[str, Meta(pattern="^[0-9]{2}$", description="two digits")] = "00"


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ('{"items": [{"count": 0}]}', f"items[0].count must be {COUNT}, got 0"),
        ('{"items": [{"count": true}]}', f"items[0].count must be {COUNT}, got True"),
        ('{"items": [{"count": 4.5}]}', f"items[0].count must be {COUNT}, got 4.5"),
        ('{"items": [{"count": 1, "word": "z"}]}', "items[0].word must be x | y, got 'z'"),
        (
            '{"items": [{"count": 1, "share": 2}]}',
            "items[0].share must be a number in 0..1 or null, got 2",
        ),
        (
            '{"items": [{"count": 1, "wrod": "x"}]}',
            "unknown key 'items[0].wrod'; did you mean word?",
        ),
        ('{"items": [{}]}', "items[0].count is missing"),
        ("{}", "items is missing"),
        ("[]", "it must be a JSON object, got []"),
        ('{"items": {}}', "items must be a list, got {}"),
        ('{"items": [], "name": ""}', "name must be a non-empty string, got ''"),
        ('{"items": [], "name": "a\\u0000"}', "name must be a non-empty string, got 'a\\x00'"),
        ('{"items": [], "flag": 1}', "flag must be true or false, got 1"),
        ('{"items": [], "ids": [3, -1]}', "ids[1] must be an integer >= 0, got -1"),
        ('{"items": [], "code": "1"}', "code must be two digits, got '1'"),
        ('{"items": [], "sizes": {"a": "b"}}', "sizes.a must be an integer, got 'b'"),
        (
            '{"items": [], "parts": {"a": {"count": 1}, "b.c": {"count": 0}}}',
            f"parts[b.c].count must be {COUNT}, got 0",
        ),
        ('{"items": [], "items": []}', "the JSON key 'items' appears twice in one object"),
        ('{"items": [], "ids": [NaN]}', "the JSON number NaN is not finite"),
        ("{", "not JSON: "),
    ],
)  # fmt: skip
def test_refusal_is_one_line_with_file_key_expected_and_found(raw, words):
    with pytest.raises(ConfigError) as caught:
        decode(raw.encode(), Outer, "file.json", ConfigError)
    assert str(caught.value).startswith(f"file.json: {words}")
    assert "\n" not in str(caught.value)


def test_what_fits_is_a_typed_value():
    raw = {"items": [{"count": 2, "share": 1}], "ids": [1, 2]}
    assert convert(raw, Outer, "x", ConfigError) == Outer([Inner(2, share=1.0)], ids=(1, 2))


def test_a_key_that_is_no_text_is_shown():
    with pytest.raises(ConfigError, match=r"x: sizes.True: the key must be a string, got True"):
        convert({"items": [], "sizes": {"a": 1, True: 2}}, Outer, "x", ConfigError)


def test_advice_ends_the_line():
    with pytest.raises(ConfigError, match=r"^x: items is missing; ask again$"):
        convert({}, Outer, "x", ConfigError, "ask again")
