import contextlib
import copy
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, load_file

from tests.weights.shard_folders import block_bytes, small_config, write_shard_folder
from tpi.errors import WeightsError
from tpi.weights import verify
from tpi.weights.blockfile import (
    BlockEntry,
    make_plan_digest,
    open_shard_folder,
    tensor_views,
    write_manifest,
)
from tpi.weights.layout import make_layout
from tpi.weights.safetensors_header import parse_header
from tpi.weights.shard import BlockId, make_shard_plan

Tensors = list[tuple[str, str, tuple[int, ...]]]

TENSORS = st.dictionaries(
    st.text("abcé_.0", min_size=1, max_size=6).filter(lambda name: not name.startswith("__")),
    st.lists(st.integers(0, 40), max_size=3).map(tuple),
    min_size=1,
    max_size=8,
)
DTYPES = st.sampled_from(["float32", "float16", "bfloat16"])


def entry_of(tensors: Tensors) -> BlockEntry:
    layout = make_layout(tuple(tensors))
    return BlockEntry(BlockId("attn", 0), Path("x"), layout.num_bytes, "", layout.places)


@settings(max_examples=60, deadline=None)
@given(TENSORS, DTYPES)
def test_layout_is_aligned_whole_and_in_order(shapes, dtype):
    tensors = [(name, dtype, shape) for name, shape in shapes.items()]
    layout = make_layout(tuple(tensors))
    assert [(p.name, p.dtype, p.shape) for p in layout.places] == tensors
    assert len(layout.header) % 4096 == 0
    assert layout.num_bytes % 4096 == 0
    end = len(layout.header)
    for place in layout.places:
        assert place.offset % 64 == 0
        assert end <= place.offset < end + 64
        end = place.offset + place.num_bytes
    assert end <= layout.num_bytes < end + 4096
    header = parse_header(layout.header, layout.num_bytes, "x")
    assert next(iter(header.values())).offset == len(layout.header)
    assert {name for name in header if not name.startswith("__pad")} == set(shapes)


@settings(max_examples=30, deadline=None)
@given(TENSORS, DTYPES, st.integers(0, 2**32))
def test_the_library_reads_the_same_numbers_as_our_views(shapes, dtype, seed):
    tensors = [(name, dtype, shape) for name, shape in shapes.items()]
    data = block_bytes(tensors, dtype, seed)
    theirs = load(data)
    ours = tensor_views(entry_of(tensors), memoryview(bytearray(data)))
    assert list(ours) == list(shapes)
    for name, view in ours.items():
        assert view.dtype == theirs[name].dtype == getattr(torch, dtype)
        assert view.shape == theirs[name].shape
        assert torch.equal(view, theirs[name])


def test_views_lie_in_the_buffer():
    tensors: Tensors = [("norm", "float32", (5,)), ("q", "float32", (3, 5))]
    memory = bytearray(block_bytes(tensors, "float32"))
    buffer = np.frombuffer(memory, np.uint8)
    start = buffer.ctypes.data
    views = tensor_views(entry_of(tensors), memoryview(memory))
    for place in entry_of(tensors).places:
        assert views[place.name].data_ptr() == start + place.offset
    buffer[:] = 0
    assert not views["q"].any()


def test_buffer_that_is_too_short_is_refused():
    tensors: Tensors = [("q", "float32", (3, 5))]
    with pytest.raises(WeightsError, match="expected a buffer of 8192 bytes, got 8191"):
        tensor_views(entry_of(tensors), memoryview(bytearray(8191)))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(("world_size", "rank"), [(1, 0), (3, 0), (3, 2)])
def test_folder_opens_as_it_was_written(tmp_path, dtype, world_size, rank):
    config = small_config(qk_norm=True, architecture="qwen3", num_heads=6, num_kv_heads=2)
    written = write_shard_folder(
        tmp_path / "r", config, world_size=world_size, rank=rank, dtype=dtype
    )
    opened = open_shard_folder(tmp_path / "r")
    assert opened == written
    for entry in opened.blocks:
        views = tensor_views(entry, memoryview(bytearray(entry.path.read_bytes())))
        for name, tensor in load_file(entry.path).items():
            assert name.startswith("__pad") or torch.equal(views[name], tensor)


def test_rank_that_owns_nothing_has_an_empty_folder(tmp_path):
    write_shard_folder(tmp_path / "r", small_config(), rank=1, weights=[1, 0])
    assert open_shard_folder(tmp_path / "r").blocks == ()


def test_plan_digest_is_one_for_all_ranks_and_tells_splits_apart(tmp_path):
    config = small_config()
    ranks = [write_shard_folder(tmp_path / f"r{r}", config, rank=r) for r in range(2)]
    assert ranks[0].plan_digest == ranks[1].plan_digest
    plan = make_shard_plan(config, 2)
    digests = {
        make_plan_digest(config, plan, "float32", 2, "test"),
        make_plan_digest(config, plan, "float32", 2, "other"),
        make_plan_digest(config, plan, "float32", 1, "test"),
        make_plan_digest(config, plan, "bfloat16", 2, "test"),
        make_plan_digest(config, make_shard_plan(config, 2, [2, 1]), "float32", 2, "test"),
        make_plan_digest(small_config(rope_theta=2e4), plan, "float32", 2, "test"),
    }
    assert len(digests) == 6
    assert ranks[0].plan_digest in digests


def test_manifest_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    manifest = write_shard_folder(tmp_path / "r", small_config())
    before = (tmp_path / "r" / "manifest.json").read_bytes()

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_manifest(tmp_path / "r", manifest)
    assert (tmp_path / "r" / "manifest.json").read_bytes() == before
    assert not [p for p in (tmp_path / "r").iterdir() if p.suffix == ".tmp"]


# --- files that are not what they should be -----------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    write_shard_folder(tmp_path / "rank-0", small_config())
    return tmp_path / "rank-0"


def refused(folder: Path, *, verify: bool = True) -> str:
    with pytest.raises(WeightsError) as caught:
        open_shard_folder(folder, verify=verify)
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder) in message
    return message


def tensors_of(folder: Path, name: str) -> Tensors:
    files = json.loads((folder / "manifest.json").read_text())["files"]
    return [(n, t["dtype"], tuple(t["shape"])) for n, t in files[name]["tensors"].items()]


def resized(path: Path, change: int) -> None:
    os.truncate(path, path.stat().st_size + change)


def flipped(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def with_tensors(change: Callable[[Tensors], Tensors]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        path.write_bytes(block_bytes(change(tensors_of(path.parent, path.name)), "float32"))

    return apply


def plain_file(path: Path) -> None:
    """The right tensors as the library writes them: not at multiples of 64, not padded."""
    from safetensors.torch import save_file

    tensors = load_file(path)
    save_file({n: t for n, t in tensors.items() if not n.startswith("__pad")}, path)


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def linked(path: Path) -> None:
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda p: p.unlink(), "No such file"),
    "empty": (lambda p: p.write_bytes(b""), "truncated: expected 8192 bytes, got 0"),
    "cut": (lambda p: resized(p, -1), "truncated: expected 8192 bytes, got 8191"),
    "cut in the header": (lambda p: os.truncate(p, 100), "does not fit the 100 bytes"),
    "too long": (lambda p: resized(p, 4096), "bytes too many"),
    "FIFO": (fifo, "a FIFO"),
    "symbolic link": (linked, "a symbolic link"),
    "folder": (directory, "a folder"),
    "extra tensor": (with_tensors(lambda t: [*t, ("x", "float32", (1,))]), "unexpected tensor 'x'"),
    "missing tensor": (with_tensors(lambda t: t[:-1]), "tensor down is missing"),
    "right bytes, wrong shape": (
        with_tensors(lambda t: [(n, d, tuple(reversed(s))) for n, d, s in t]),
        "tensor gate: expected F32 [12, 16], got F32 [16, 12]",
    ),
    "other order": (with_tensors(lambda t: [t[0], t[2], t[1], t[3]]), "not laid out"),
    "plain safetensors": (plain_file, "not laid out for direct reads"),
    "pickle": (lambda p: p.write_bytes(b"\x80\x02}q\x00." * 2000), "pickle"),
    "altered header": (lambda p: flipped(p, 20), "ffn-001"),
    "altered padding of the header": (lambda p: flipped(p, 4090), "ffn-001"),
    "altered weight": (lambda p: flipped(p, 4100), "altered: expected SHA-256"),
    "altered last byte": (lambda p: flipped(p, -1), "altered: expected SHA-256"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_block_file_at_fault_is_named_with_the_reason(folder, name):
    change, reason = FAULTS[name]
    open_shard_folder(folder)  # a stamp must not hide the fault
    change(folder / "ffn-001.safetensors")
    message = refused(folder)
    assert "ffn-001.safetensors" in message
    assert reason in message


@pytest.mark.parametrize("name", [n for n in FAULTS if not n.startswith("altered")])
def test_form_is_checked_without_hashing_too(folder, name):
    change, reason = FAULTS[name]
    change(folder / "ffn-001.safetensors")
    assert reason in refused(folder, verify=False)


def test_unreadable_file(folder, monkeypatch):
    real = os.open

    def denied(path: Any, *args: Any, **kwargs: Any) -> int:
        if str(path).endswith("ffn-001.safetensors"):
            raise PermissionError(13, "Permission denied")
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", denied)  # root may read everything, so chmod would not do
    assert "ffn-001.safetensors: cannot be opened: Permission denied" in refused(folder)


@pytest.mark.parametrize("at", ["open", "hash"])
def test_read_error(folder, monkeypatch, at):
    def broken(*args: Any) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "pread" if at == "open" else "preadv", broken)
    assert "Input/output error" in refused(folder)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_in_the_weights_is_refused_though_the_hash_is_right(tmp_path, dtype, value):
    folder = tmp_path / "r"
    manifest = write_shard_folder(folder, small_config(), dtype=dtype)
    entry = manifest.blocks[2]
    data = bytearray(entry.path.read_bytes())
    tensor_views(entry, memoryview(data))["down"][-1, -1] = value
    entry.path.write_bytes(data)
    raw = json.loads((folder / "manifest.json").read_text())
    raw["files"][entry.path.name]["sha256"] = hashlib.sha256(data).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(raw))
    message = refused(folder)
    assert "holds NaN or infinity" in message
    assert entry.path.name in message


# --- manifests that are not what they should be -------------------------------------------------


def edited(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "manifest.json"
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))


def renamed(name: str) -> Callable[[dict[str, Any]], object]:
    def change(raw: dict[str, Any]) -> None:
        raw["files"][name] = raw["files"].pop("ffn-001.safetensors")

    return change


def added(name: str) -> Callable[[dict[str, Any]], object]:
    return lambda raw: raw["files"].update({name: raw["files"]["ffn-001.safetensors"]})


NAMES = [
    "../escaped.safetensors", "/etc/passwd", "a\0b", "x" * 4096, "CON", "con.safetensors",
    "ffn-001.safetensors/", "./ffn-001.safetensors", "ffn-1.safetensors", "ffn-002.safetensors",
    "FFN-001.safetensors", "",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_names_of_files_come_from_the_plan_alone(folder, name, monkeypatch):
    opened: list[str] = []
    real = os.open

    def recorded(path: Any, *args: Any, **kwargs: Any) -> int:
        opened.append(str(path))
        return real(path, *args, **kwargs)

    edited(folder, renamed(name))
    monkeypatch.setattr(os, "open", recorded)
    assert "file ffn-001.safetensors is missing" in refused(folder)
    monkeypatch.undo()
    edited(folder, lambda raw: raw["files"].update({"ffn-001.safetensors": raw["files"][name]}))
    monkeypatch.setattr(os, "open", recorded)
    assert "unexpected file" in refused(folder)
    assert {Path(path) for path in opened} == {folder / "manifest.json"}


def set_at(*path: Any, to: Any) -> Callable[[dict[str, Any]], object]:
    def change(raw: Any) -> None:
        for key in path[:-1]:
            raw = raw[key]
        raw[path[-1]] = to

    return change


FFN = ("files", "ffn-001.safetensors")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda raw: raw.clear(), "schema_version is missing; split the model again"),
        (set_at("schema_version", to=2), "schema_version must be 1, got 2"),
        (set_at("rank", to=2), "rank must be < 2, got 2"),
        (set_at("rank", to=-1), "rank"),
        (set_at("rank", to=1), "unexpected file"),
        (
            set_at("dtype", to="float64"),
            "dtype must be bfloat16 | float16 | float32, got 'float64'",
        ),
        (set_at("dtype", to="bfloat16"), "plan_digest"),
        (set_at("source", to=""), "source"),
        (set_at("source", to="x" * 5000), "source"),
        (set_at("distinct_layers", to=3), "distinct_layers"),
        (set_at("plan_digest", to="0" * 64), "plan_digest"),
        (set_at("config", to=[]), "config"),
        (set_at("config", "hidden_size", to=10**12), "hidden_size"),
        (set_at("config", "hidden_size", to=32), "plan_digest"),
        (set_at("config", "architectures", to=["Evil"]), "architectures"),
        (set_at("plan", "world_size", to=10**9), "world_size"),
        (set_at("plan", "world_size", to=3), "shares: expected 3 numbers"),
        (set_at("plan", "weights", to=[1.0, "1"]), "weights"),
        (set_at("plan", "weights", to=[3.0, 1.0]), "shares"),
        (set_at("plan", "shares", 0, "q_stop", to=3), "shares"),
        (set_at("files", to=[]), "files must be a JSON object, got []"),
        (set_at(*FFN, to=None), "files[ffn-001.safetensors] must be a JSON object, got None"),
        (
            set_at(*FFN, "num_bytes", to=4096),
            "files[ffn-001.safetensors].num_bytes must be 8192, got 4096",
        ),
        (set_at(*FFN, "sha256", to="0" * 63), "sha256 must be 64 hex digits"),
        (
            set_at(*FFN, "tensors", "norm", to={"dtype": "float32", "shape": [17]}),
            "tensors.norm must be",
        ),
        (
            set_at(*FFN, "tensors", "norm", to={"dtype": "float16", "shape": [16]}),
            "tensors.norm must be",
        ),
        (lambda raw: raw["files"]["ffn-001.safetensors"]["tensors"].pop("up"), "up is missing"),
        (
            set_at(*FFN, "tensors", "x", to={"dtype": "float32", "shape": []}),
            "unexpected tensor 'x'",
        ),
        (set_at(*FFN, "tensors", "x", to={}), "tensors.x.dtype is missing"),
        (set_at("extra", to=1), "unknown key 'extra'"),
    ],
)
def test_manifest_at_fault_is_refused(folder, change, reason):
    edited(folder, change)
    assert reason in refused(folder)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not JSON"), (b"[]", "JSON object"), (b"\xff", "UTF-8"),
        (b'{"rank": 0, "rank": 1}', "twice"), (b"[" * 100_000, "nested"),
        (b" " * ((16 << 20) + 1), "at most"), (b"\x80\x02}q\x00.", "UTF-8"),
    ],
)  # fmt: skip
def test_manifest_that_is_no_manifest(folder, data, reason):
    (folder / "manifest.json").write_bytes(data)
    assert reason in refused(folder)


def test_manifest_that_is_no_regular_file_does_not_block(folder):
    fifo(folder / "manifest.json")
    assert "a FIFO" in refused(folder)
    (folder / "manifest.json").unlink()
    assert "No such file" in refused(folder)
    assert "no such folder" in refused(folder / "nowhere")


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 2**70) | st.sampled_from(["", "float32", "x"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab"), inner),
    max_leaves=4,
)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_change_of_the_manifest_gives_weights_error(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "mutated"
    if not folder.exists():
        write_shard_folder(folder, small_config(num_layers=1))
        shutil.copy(folder / "manifest.json", folder / "good.json")
    good = json.loads((folder / "good.json").read_text())
    raw = copy.deepcopy(good)
    node, path = raw, []
    while True:
        path.append(data.draw(st.sampled_from(sorted(node) if isinstance(node, dict) else [0])))
        inner = node[path[-1]]
        if not isinstance(inner, dict | list) or not inner or data.draw(st.booleans()):
            node[path[-1]] = data.draw(JSON_VALUES)
            break
        node = inner
    (folder / "manifest.json").write_text(json.dumps(raw))
    # A key of config may say the same in other ways (null where that is the default).
    if path[0] == "config" or json.dumps(raw) == json.dumps(good):
        with contextlib.suppress(WeightsError):
            open_shard_folder(folder, verify=False)
    else:
        refused(folder, verify=False)


# --- hashing once -------------------------------------------------------------------------------


@pytest.fixture
def hashed(monkeypatch):
    """Names of the files that were hashed; every file counts as old enough to be stamped."""
    names: list[str] = []
    real = verify._hash_file

    def recorded(fd: int, entry: BlockEntry, dtype: str) -> str:
        names.append(entry.path.name)
        return real(fd, entry, dtype)

    monkeypatch.setattr(verify, "_hash_file", recorded)
    monkeypatch.setattr(verify, "YOUNG_NS", -(10**18))
    return names


def test_second_opening_hashes_nothing(folder, hashed):
    opened = open_shard_folder(folder)
    assert sorted(hashed) == sorted(entry.path.name for entry in opened.blocks)
    hashed.clear()
    assert open_shard_folder(folder) == opened
    assert hashed == []
    assert verify.stamp_path(folder).parent == folder.parent  # beside, not in, the folder
    assert not [p for p in folder.iterdir() if "verified" in p.name]


def test_only_the_file_that_was_touched_is_hashed_again(folder, hashed):
    open_shard_folder(folder)
    hashed.clear()
    os.utime(folder / "attn-000.safetensors", ns=(1, 1))
    open_shard_folder(folder)
    assert hashed == ["attn-000.safetensors"]


def test_only_the_blocks_asked_for_are_looked_at_and_the_rest_stays_known(folder, hashed):
    blocks = open_shard_folder(folder, verify=False).blocks
    first, *others = [entry.id for entry in blocks]
    flipped(folder / blocks[-1].path.name, 4100)
    opened = open_shard_folder(folder, only={first})
    assert [entry.id for entry in opened.blocks] == [first]
    assert hashed == [first.file_name]
    open_shard_folder(folder, only=set(others[:-1]))
    hashed.clear()
    open_shard_folder(folder, only={first, *others[:-1]})  # both stamps are there
    assert hashed == []
    assert "altered" in refused(folder)


def test_file_altered_under_its_old_time_is_found(folder, hashed):
    open_shard_folder(folder)
    path = folder / "attn-000.safetensors"
    times = path.stat()
    flipped(path, 4100)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert "altered" in refused(folder)
    assert "altered" in refused(folder)  # a failure leaves no stamp behind


def test_young_files_are_hashed_again(folder, hashed, monkeypatch):
    monkeypatch.setattr(verify, "YOUNG_NS", 10**18)
    open_shard_folder(folder)
    hashed.clear()
    open_shard_folder(folder)
    assert hashed


def test_other_manifest_voids_the_stamp(folder, hashed):
    open_shard_folder(folder)
    path = folder / "manifest.json"
    path.write_bytes(path.read_bytes() + b" ")
    hashed.clear()
    open_shard_folder(folder)
    assert len(hashed) > 4


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b'{"schema_version": 1, "files": []}', None])
def test_stamp_that_is_no_stamp_is_ignored(folder, hashed, data):
    path = verify.stamp_path(folder)
    path.write_bytes(data) if data is not None else os.mkfifo(path)
    open_shard_folder(folder)
    assert len(hashed) > 4
    hashed.clear()
    open_shard_folder(folder)
    assert hashed == []


def test_stamp_that_cannot_be_written_only_costs_time(folder, hashed, monkeypatch, caplog):
    def read_only(path: Path, data: bytes) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(verify, "write_atomic", read_only)
    caplog.set_level(logging.INFO)
    open_shard_folder(folder)
    hashed.clear()
    open_shard_folder(folder)
    assert len(hashed) > 4
    assert "hashed again next time" in caplog.text


def test_layers_that_are_one_file_are_hashed_once(tmp_path, hashed):
    config = small_config(num_layers=6)
    write_shard_folder(tmp_path / "r", config, distinct_layers=2)
    manifest = open_shard_folder(tmp_path / "r")
    assert manifest.distinct_layers == 2
    layers = [name for name in hashed if name.startswith(("attn", "ffn"))]
    assert sorted(layers) == [
        f"{kind}-00{i}.safetensors" for kind in ("attn", "ffn") for i in (0, 1)
    ]
    hashed.clear()
    open_shard_folder(tmp_path / "r")
    assert hashed == []


def test_link_to_another_layer_than_the_manifest_says_is_found(tmp_path):
    write_shard_folder(tmp_path / "r", small_config(num_layers=4), distinct_layers=2)
    wrong = tmp_path / "r" / "attn-003.safetensors"
    wrong.unlink()
    wrong.hardlink_to(tmp_path / "r" / "attn-000.safetensors")
    message = refused(tmp_path / "r")
    assert "attn-003.safetensors: altered" in message


def test_stamp_of_a_folder_named_by_a_dot(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert verify.stamp_path(Path()) == folder.parent / "rank-0.verified.json"
