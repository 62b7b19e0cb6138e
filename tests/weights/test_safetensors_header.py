import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save

from tpi.errors import WeightsError
from tpi.weights.layout import TensorPlace
from tpi.weights.safetensors_header import MAX_HEADER_BYTES, parse_header, read_header


def tensor(dtype: str, shape: Any, start: Any, end: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def file_of(header: bytes | dict[str, Any], num_data_bytes: int) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + b"\0" * num_data_bytes


def read(folder: Path, data: bytes) -> dict[str, TensorPlace]:
    path = folder / "x.safetensors"
    path.write_bytes(data)
    fd = os.open(path, os.O_RDONLY)
    try:
        return read_header(fd, str(path))
    finally:
        os.close(fd)


def test_reads_what_the_library_writes(tmp_path):
    arrays: dict[str, np.ndarray[Any, Any]] = {
        "b": np.arange(6, dtype=np.float32).reshape(2, 3),
        "a": np.zeros((4,), np.float16),
        "empty": np.zeros((0, 3), np.float32),
        "scalar": np.array(3, np.float32),
    }
    data = save(arrays, {"format": "pt"})
    found = read(tmp_path, data)
    assert set(found) == set(arrays)
    for name, array in arrays.items():
        place = found[name]
        assert place.shape == array.shape
        raw = data[place.offset : place.offset + place.num_bytes]
        assert raw == array.tobytes()


GOOD = {"w": tensor("F32", [2], 0, 8), "v": tensor("F32", [1], 8, 12)}


def test_metadata_and_trailing_spaces_are_part_of_the_format(tmp_path):
    raw = {"__metadata__": {"format": "pt"}, **GOOD}
    header = read(tmp_path, file_of(json.dumps(raw).encode() + b"   ", 12))
    assert list(header) == ["w", "v"]


def zip_archive() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}q\x00.")
    return file.getvalue()


HOSTILE = {
    "empty": (b"", "at least 8 bytes, got 0"),
    "seven bytes": (b"\0" * 7, "at least 8 bytes, got 7"),
    "length 2^63": ((1 << 63).to_bytes(8, "little") + b"{}", "header length 9223372036854775808"),
    "length 100 000 001": (
        (100_000_001).to_bytes(8, "little") + b"{}", "header length 100000001, expected at most"
    ),
    "header longer than the file": (
        (90).to_bytes(8, "little") + b"{}", "does not fit the 10 bytes"
    ),
    "truncated": (file_of(GOOD, 11), "truncated: expected"),
    "cut in the header": (file_of(GOOD, 0)[:40], "does not fit the 40 bytes"),
    "trailing bytes": (file_of(GOOD, 13), "bytes after the last tensor"),
    "data without tensors": (file_of({}, 4), "bytes after the last tensor"),
    "overlap": (
        file_of({"w": tensor("F32", [2], 0, 8), "v": tensor("F32", [2], 4, 12)}, 12),
        "'v' overlaps",
    ),
    "same bytes twice": (
        file_of({"w": tensor("F32", [2], 0, 8), "v": tensor("F32", [2], 0, 8)}, 8), "overlaps"
    ),
    "hole": (
        file_of({"w": tensor("F32", [1], 0, 4), "v": tensor("F32", [1], 8, 12)}, 12),
        "'v' leaves a hole",
    ),
    "hole at the start": (file_of({"v": tensor("F32", [1], 8, 12)}, 12), "leaves a hole"),
    "shape and offsets disagree": (
        file_of({"w": tensor("F32", [3], 0, 8)}, 8), "takes 12 bytes, data_offsets"
    ),
    "size overflow": (
        file_of({"w": tensor("F32", [1 << 62, 1 << 62], 0, 8)}, 8), "data_offsets"
    ),
    "size beyond 64 bits": (file_of({"w": tensor("F32", [1 << 64], 0, 8)}, 8), "must be a size"),
    "negative dimension": (file_of({"w": tensor("F32", [-2, -1], 0, 8)}, 8), "2^63, got -2"),
    "negative offset": (file_of({"w": tensor("F32", [2], -8, 0)}, 8), "2^63, got -8"),
    "offsets backwards": (file_of({"w": tensor("F32", [2], 8, 0)}, 8), "span -8"),
    "three offsets": (
        file_of({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8, 8]}}, 8),
        "data_offsets must be a list of 2, got [0, 8, 8]",
    ),
    "fraction": (file_of({"w": tensor("F32", [2.0], 0, 8)}, 8), "2^63, got 2.0"),
    "true as a size": (file_of({"w": tensor("F32", [True, 2], 0, 8)}, 8), "2^63, got True"),
    "shape is a string": (file_of({"w": tensor("F32", "2", 0, 8)}, 8), "shape must be a list"),
    "too many dimensions": (file_of({"w": tensor("F32", [1] * 9 + [2], 0, 8)}, 8), "at most 8"),
    "unknown dtype": (file_of({"w": tensor("F33", [2], 0, 8)}, 8), "unknown dtype 'F33'"),
    "dtype is a list": (file_of({"w": tensor(["F32"], [2], 0, 8)}, 8), "dtype must be a string"),  # type: ignore[arg-type]  # that is the fault
    "entry is a list": (file_of({"w": [1]}, 8), "tensor 'w': it must be a JSON object"),
    "key too many": (file_of({"w": {**GOOD["w"], "x": 1}}, 8), "tensor 'w': unknown key 'x'"),
    "metadata is no map": (file_of({"__metadata__": [], **GOOD}, 12), "__metadata__"),
    "not UTF-8": (file_of(b'{"\xff\xfe": 1}', 0), "not UTF-8"),
    "half a surrogate pair": (file_of(b'{"a\\ud800": 1}', 0), "not JSON"),
    "not JSON": (file_of(b"{hello}", 0), "not JSON"),
    "JSON list": (file_of(b"[1, 2]", 0), "not a JSON object"),
    "nested": (file_of(b'{"a":' + b"[" * 200_000, 0), "nested too deeply"),
    "duplicate keys": (
        file_of(b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
                b'"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', 8),
        "'w' appears twice",
    ),
    "duplicate keys inside": (
        file_of(b'{"w":{"dtype":"F32","dtype":"F16","shape":[2],"data_offsets":[0,8]}}', 8),
        "'dtype' appears twice",
    ),
    "NaN as a size": (
        file_of(b'{"w":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}', 8), "not finite"
    ),
    "torch archive renamed": (zip_archive(), "pickle or zip"),
    "pickle renamed": (b"\x80\x04\x95\x10\0\0\0\0\0\0\0}\x94.", "pickle or zip"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_file_is_refused_with_file_and_reason(tmp_path, name):
    data, reason = HOSTILE[name]
    with pytest.raises(WeightsError) as caught:
        read(tmp_path, data)
    assert reason in str(caught.value)
    assert str(tmp_path / "x.safetensors") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_more_than_the_bound_is_read_of_a_huge_header(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    path.write_bytes((MAX_HEADER_BYTES + 1).to_bytes(8, "little"))
    os.truncate(path, 1 << 30)  # sparse
    asked: list[int] = []
    pread = os.pread

    def counted(fd: int, num_bytes: int, offset: int) -> bytes:
        asked.append(num_bytes)
        return pread(fd, num_bytes, offset)

    monkeypatch.setattr(os, "pread", counted)
    fd = os.open(path, os.O_RDONLY)
    with pytest.raises(WeightsError, match="header length"):
        read_header(fd, "x")
    os.close(fd)
    assert sum(asked) == 8


def test_read_error_is_a_weights_error():
    with pytest.raises(WeightsError, match="x: cannot be read"):
        read_header(-1, "x")


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=80), st.integers(0, 100), st.booleans())
def test_random_bytes_give_only_weights_errors(noise, cut, with_length):
    data = len(noise).to_bytes(8, "little") + noise if with_length else noise
    with pytest.raises(WeightsError):
        parse_header(data, len(data) + cut + 1, "x")  # bytes after the last tensor, at least


MUTATED = json.dumps({"a": tensor("F32", [2, 3], 0, 24), "b": tensor("BF16", [4], 24, 32)}).encode()


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, len(MUTATED) + 7), st.integers(0, 255)), min_size=1, max_size=3
    ),
    st.integers(0, 40),
)
def test_what_passes_after_mutation_the_library_accepts_too(tmp_path_factory, changes, num_data):
    data = bytearray(file_of(MUTATED, num_data))
    for at, value in changes:
        data[at] = value
    try:
        header = parse_header(bytes(data), len(data), "x")
    except WeightsError:
        return
    path = tmp_path_factory.getbasetemp() / "mutated.safetensors"
    path.write_bytes(data)
    with safe_open(path, framework="np") as file:
        assert set(file.keys()) == header.keys()
