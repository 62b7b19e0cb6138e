import math
import time
import tracemalloc
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.comm.peers import tensor_header
from tpi.comm.messages import FrameParser
from tpi.comm.wire import (
    HEADER_BYTES,
    MAX_CONTROL_BYTES,
    MAX_TENSOR_BYTES,
    Expect,
    Flag,
    FrameHeader,
    FrameType,
    Op,
    WireDtype,
    pads_bytes,
    tensor_bytes,
)
from tpi.errors import FrameError

U32 = st.integers(0, 2**32 - 1)


@st.composite
def headers(draw, max_elements=64):
    common = {
        "step": draw(U32), "layer": draw(st.integers(0, 65535)), "op": draw(st.sampled_from(Op)),
        "start": draw(U32), "request": draw(U32), "sequence": draw(U32),
        "epoch": draw(st.binary(min_size=16, max_size=16)),
    }  # fmt: skip
    kind = draw(st.sampled_from(FrameType))
    if kind is FrameType.TENSOR:
        dtype = draw(st.sampled_from([WireDtype.FLOAT32, WireDtype.BFLOAT16]))
        shape = tuple(draw(st.lists(st.integers(1, max_elements), min_size=1, max_size=4)))
        while math.prod(shape) > max_elements:
            shape = shape[:-1]
        flags = int(draw(st.sampled_from([Flag.NONE, Flag.FIRST, Flag.PADDED | Flag.FIRST])))
        return FrameHeader(
            kind, dtype=dtype, shape=shape, flags=flags,
            payload_bytes=tensor_bytes(dtype, shape, flags), **common,
        )  # fmt: skip
    bodies = (FrameType.HELLO, FrameType.WELCOME, FrameType.ABORT)
    size = draw(st.integers(0, 50)) if kind in bodies else 0
    return FrameHeader(kind, payload_bytes=size, **common)


@st.composite
def frames(draw):
    header = draw(headers())
    return header, draw(st.binary(min_size=header.payload_bytes, max_size=header.payload_bytes))


def stream_of(some_frames):
    return b"".join(header.encode() + payload for header, payload in some_frames)


@given(headers())
def test_header_round_trip(header):
    data = header.encode()
    assert len(data) == HEADER_BYTES == 80
    assert FrameHeader.decode(data) == header


@given(st.lists(frames(), max_size=4), st.data())
def test_any_split_of_the_stream_gives_the_same_frames(some_frames, data):
    stream = stream_of(some_frames)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    parser = FrameParser()
    found: list[tuple[FrameHeader, bytes]] = []
    for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += parser.feed(stream[start:stop])
    assert found == some_frames


@given(st.lists(frames(), min_size=1, max_size=3))
def test_reading_only_what_is_needed_never_crosses_a_frame(some_frames):
    stream, offset = stream_of(some_frames), 0
    parser = FrameParser()
    for frame in some_frames:
        found: list[tuple[FrameHeader, bytes]] = []
        while not found:
            step = parser.needed
            found = parser.feed(stream[offset : offset + step])
            offset += step
        assert found == [frame]
    assert offset == len(stream)


@given(st.binary(max_size=500))
def test_junk_is_a_frame_error_or_waits_for_more(junk):
    parser = FrameParser()
    try:
        assert parser.feed(junk) == [] or junk.startswith(b"TPI1")
    except FrameError:
        with pytest.raises(FrameError):
            parser.feed(b"")


@settings(max_examples=300)
@given(frames(), st.integers(0, HEADER_BYTES - 1), st.integers(1, 255))
def test_mutated_header_is_a_frame_error_or_another_valid_frame(frame, position, flip):
    data = bytearray(stream_of([frame]))
    data[position] ^= flip
    try:
        found = FrameParser().feed(bytes(data))
    except FrameError:
        return
    for header, payload in found:
        assert header.payload_bytes == len(payload)


def raw_header(payload_bytes, kind=FrameType.TENSOR, shape=(4,)):
    good = FrameHeader(kind, dtype=WireDtype.FLOAT32, shape=shape).encode()
    return good[:64] + payload_bytes.to_bytes(8, "little") + good[72:]


@pytest.mark.parametrize("size", [0, 15, 17, 2**31, 2**63, 2**64 - 1])
def test_length_that_disagrees_with_the_shape_is_refused(size):
    with pytest.raises(FrameError, match="payload_bytes"):
        FrameHeader.decode(raw_header(size))


@pytest.mark.parametrize("kind", [FrameType.HELLO, FrameType.WELCOME, FrameType.ABORT])
@pytest.mark.parametrize("size", [MAX_CONTROL_BYTES + 1, 2**31, 2**63])
def test_long_control_frame_is_refused_before_anything_is_allocated(kind, size):
    tracemalloc.start()
    try:
        start = time.monotonic()
        with pytest.raises(FrameError, match="payload_bytes"):
            FrameParser().feed(raw_header(size, kind, ()))
        assert time.monotonic() - start < 1
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_largest_control_frame_passes():
    body = bytes(MAX_CONTROL_BYTES)
    header = FrameHeader(FrameType.HELLO, payload_bytes=len(body))
    assert FrameParser().feed(header.encode() + body) == [(header, body)]


@pytest.mark.parametrize("kind", [FrameType.HEARTBEAT, FrameType.END_REQUEST])
def test_frame_without_body_must_be_empty(kind):
    with pytest.raises(FrameError, match="payload_bytes"):
        FrameHeader.decode(raw_header(1, kind, ()))


def test_shape_that_overflows_is_refused():
    shape = (2**32 - 1,) * 4
    with pytest.raises(FrameError, match=f"at most {MAX_TENSOR_BYTES}"):
        FrameHeader.decode(raw_header((math.prod(shape) * 4) % 2**64, shape=shape))


def test_parser_refuses_more_than_a_control_frame():
    count = MAX_CONTROL_BYTES // 4
    with pytest.raises(FrameError, match=f"at most {MAX_CONTROL_BYTES} here"):
        FrameParser().feed(tensor_header(count + 1).encode())
    assert FrameParser().feed(tensor_header(count).encode() + bytes(4 * count))


@pytest.mark.parametrize(
    ("offset", "value", "field"),
    [
        (0, b"HTTP", "magic"), (4, b"\x02", "version"), (5, b"\x63", "type"), (7, b"\x80", "flags"),
        (30, b"\x77", "op"), (31, b"\x09", "dtype"), (36, b"\x05", "shape"), (37, b"\x01", "shape"),
        (44, b"\x01", "shape"), (40, b"\x00", "shape"), (79, b"\x01", "shape"),
    ],
)  # fmt: skip
def test_field_that_cannot_be_is_named(offset, value, field):
    data = bytearray(tensor_header(8).encode())
    data[offset : offset + len(value)] = value
    with pytest.raises(FrameError, match=field):
        FrameHeader.decode(data)


def test_version_mismatch_names_both():
    data = bytearray(tensor_header(8).encode())
    data[4] = 9
    with pytest.raises(FrameError, match="expected 1, got 9"):
        FrameHeader.decode(data)


@pytest.mark.parametrize("length", [0, 79, 81])
def test_header_of_another_length_is_refused(length):
    with pytest.raises(FrameError, match="80 bytes"):
        FrameHeader.decode(bytes(length))


@pytest.mark.parametrize(
    "changes",
    [
        {"step": 4}, {"layer": 6}, {"op": Op.FFN}, {"start": 1}, {"flags": 1}, {"request": 1},
        {"shape": (2, 4)}, {"dtype": WireDtype.BFLOAT16, "payload_bytes": 16},
        {"kind": FrameType.END_REQUEST, "shape": (), "payload_bytes": 0},
    ],
    ids=lambda changes: next(iter(changes)),
)  # fmt: skip
def test_expect_names_the_field_that_differs(changes):
    want = tensor_header(8)
    Expect(want).check(want)
    with pytest.raises(FrameError, match=f"^{next(iter(changes))}: expected .*, got "):
        Expect(want).check(replace(want, **changes))


BROADCAST = Expect(
    FrameHeader(
        FrameType.TENSOR, step=2, op=Op.BROADCAST, dtype=WireDtype.FLOAT32, shape=(0, 0, 4)
    ),
    max_payload_bytes=4096,
)


def broadcast_header(shape, flags=0, step=2):
    return FrameHeader(
        FrameType.TENSOR, flags, step, 0, Op.BROADCAST, WireDtype.FLOAT32, 7, shape, 1,
        tensor_bytes(WireDtype.FLOAT32, shape, flags),
    )  # fmt: skip


def test_open_expectation_takes_what_the_sender_may_choose():
    BROADCAST.check(broadcast_header((2, 3, 4)))
    BROADCAST.check(broadcast_header((1, 256, 4), flags=Flag.FIRST))
    BROADCAST.check(FrameHeader(FrameType.END_SESSION))


@pytest.mark.parametrize(
    ("header", "field"),
    [
        (broadcast_header((2, 3, 5)), "shape"), (broadcast_header((2, 4)), "shape"),
        (broadcast_header((1, 257, 4)), "payload_bytes"),
        (broadcast_header((1, 1, 4), step=3), "step"),
        (tensor_header(4, step=2), "shape"), (FrameHeader(FrameType.ABORT), "kind"),
    ],
)  # fmt: skip
def test_open_expectation_refuses_the_rest(header, field):
    with pytest.raises(FrameError, match=field):
        BROADCAST.check(header)


def test_pads_fill_up_to_64_bytes():
    assert [pads_bytes(batch) for batch in (1, 16, 17)] == [64, 64, 128]


@pytest.mark.parametrize(
    ("op", "text"),
    [
        (Op.NONE, "tensor"),
        (Op.BROADCAST, "broadcast of step 3"),
        (Op.ATTN, "attn sum of step 3, layer 5"),
        (Op.FFN, "ffn sum of step 3, layer 5"),
        (Op.ATTN_INPUT, "attn input of step 3, layer 5"),
        (Op.FFN_INPUT, "ffn input of step 3, layer 5"),
        (Op.LAST, "last position of step 3"),
    ],
)
def test_every_op_has_words_for_its_place(op, text):
    assert FrameHeader(FrameType.TENSOR, step=3, layer=5, op=op).describe() == text


def test_ops_end_where_the_list_ends():
    """A value that no version of ours knows is refused, whatever comes before it."""
    data = bytearray(FrameHeader(FrameType.HEARTBEAT, op=Op.LAST).encode())
    assert FrameHeader.decode(data).op is Op.LAST
    data[30] = max(Op) + 1
    with pytest.raises(FrameError, match="op: unknown value"):
        FrameHeader.decode(data)
