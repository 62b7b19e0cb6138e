import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpi.comm.messages import Abort, Hello, decode_addresses, encode_addresses
from tpi.comm.wire import MAX_CONTROL_BYTES
from tpi.errors import ConfigError, FrameError

HOSTS = st.text(st.characters(codec="ascii", min_codepoint=33, max_codepoint=126), max_size=60)


@given(st.integers(-5, 99), st.integers(0, 2**32 - 1), HOSTS, st.integers(0, 65535))
def test_hello_round_trip(rank, world_size, host, port):
    hello = Hello(rank, world_size, bytes(32), host, port)
    assert Hello.decode(hello.encode()) == hello


@given(st.lists(st.tuples(HOSTS, st.integers(0, 65535)), min_size=1, max_size=9))
def test_addresses_round_trip(addresses):
    assert decode_addresses(encode_addresses(addresses), len(addresses)) == addresses


@given(st.binary(max_size=400))
def test_junk_bodies_are_frame_errors_or_bounded_values(junk):
    for decode in (Hello.decode, Abort.decode, lambda body: decode_addresses(body, 3)):
        with contextlib.suppress(FrameError):
            decode(junk)


def test_too_many_addresses_are_refused():
    with pytest.raises(ConfigError, match="200 ranks"):
        encode_addresses([("a" * 60, 1)] * 200)


def test_abort_keeps_to_one_control_frame_and_to_printable_text():
    body = Abort(3, "weights", "\N{SNOWMAN}" * 5000).encode()
    assert len(body) <= MAX_CONTROL_BYTES
    got = Abort.decode(Abort(3, "weights", "red \x1b[31m text\nline").encode())
    assert got == Abort(3, "weights", "red ?[31m text?line")
