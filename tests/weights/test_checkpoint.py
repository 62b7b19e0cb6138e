import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.checkpoints import KINDS, make_checkpoint, reference_tokens, shared_checkpoint
from tpi.errors import ConfigError, WeightsError
from tpi.weights.checkpoint import expected_tensors, open_checkpoint, row_chunks
from tpi.weights.dtypes import to_float32


@pytest.fixture
def folder(tmp_path):
    """A checkpoint of its own, to be damaged."""
    return shutil.copytree(shared_checkpoint("gqa2"), tmp_path / "model")


def change_tensors(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_opens_and_decodes_to_distinct_tokens(kind):
    folder = shared_checkpoint(kind)
    with open_checkpoint(folder) as checkpoint:
        assert set(expected_tensors(checkpoint.config)) == set(checkpoint._names)
    assert len(set(reference_tokens(folder))) >= 16


@pytest.mark.parametrize("kind", ["mha", "multi_file", "bfloat16", "float16"])
def test_rows_are_those_of_the_file(kind):
    import torch
    from safetensors.torch import load_file as load_torch

    folder = shared_checkpoint(kind)
    tensors: dict[str, torch.Tensor] = {}
    for path in folder.glob("*.safetensors"):
        tensors |= load_torch(path)
    with open_checkpoint(folder) as checkpoint:
        for name in expected_tensors(checkpoint.config):
            expected = tensors[name][3:9].float().numpy()
            got = to_float32(checkpoint.read_rows(name, 3, 9), checkpoint.tensor_dtype(name))
            np.testing.assert_array_equal(got, expected)


def test_row_chunks_cover_all_rows_once(monkeypatch):
    monkeypatch.setattr("tpi.weights.checkpoint.CHUNK_BYTES", 100_000)
    with open_checkpoint(shared_checkpoint("mha")) as checkpoint:
        chunks = list(row_chunks(checkpoint, "model.embed_tokens.weight", 5))
    assert chunks[0] == (5, 102)
    assert [b for _, b in chunks[:-1]] == [a for a, _ in chunks[1:]]
    assert chunks[-1][1] == 512


def test_extra_tensors_are_ignored(folder):
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    change_tensors(folder, lambda t: t.update({name: np.zeros(4, np.int64)}))
    with open_checkpoint(folder) as checkpoint:
        assert name not in checkpoint._names


def test_hugging_face_cache_of_symlinks_opens(folder):
    blobs = folder.parent / "blobs"
    blobs.mkdir()
    for path in list(folder.iterdir()):
        path.rename(blobs / path.name)
        path.symlink_to(f"../blobs/{path.name}")
    open_checkpoint(folder).close()


def test_mixed_dtypes_keep_their_own_and_most_bytes_decide(folder):
    def change(tensors):
        for name in tensors:
            if "norm" not in name:
                tensors[name] = tensors[name].astype(np.float16)

    change_tensors(folder, change)
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.dtype == "float16"
        assert checkpoint.tensor_dtype("model.norm.weight") == "float32"


def test_tied_under_the_other_name_and_tied_with_both_equal(tmp_path):
    folder = shutil.copytree(shared_checkpoint("tied"), tmp_path / "model")
    embed = "model.embed_tokens.weight"
    change_tensors(folder, lambda t: t.update({"lm_head.weight": t[embed]}))
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.config.tied_embeddings
        expected = checkpoint.read_rows(embed, 0, 9)
    change_tensors(folder, lambda t: t.pop(embed))
    with open_checkpoint(folder) as checkpoint:
        np.testing.assert_array_equal(checkpoint.read_rows(embed, 0, 9), expected)


def test_config_says_tied_but_weights_differ_is_not_tied(folder, caplog):
    change_config(folder, tie_word_embeddings=True)
    with open_checkpoint(folder) as checkpoint:
        assert not checkpoint.config.tied_embeddings
    assert "not tied" in caplog.text


def test_fingerprint_changes_with_weights_and_not_with_the_place(folder, tmp_path):
    with open_checkpoint(shared_checkpoint("gqa2")) as a, open_checkpoint(folder) as b:
        assert a.fingerprint == b.fingerprint
    change_tensors(folder, lambda t: t["model.norm.weight"].__setitem__(0, 2.5))
    with open_checkpoint(folder) as c:
        assert c.fingerprint != a.fingerprint


def test_closing_twice_is_fine(folder):
    checkpoint = open_checkpoint(folder)
    checkpoint.close()
    checkpoint.close()


def test_unsupported_architecture_is_refused(folder):
    change_config(folder, architectures=["GPT2LMHeadModel"], model_type="gpt2")
    with pytest.raises(ConfigError, match=r"config\.json.*gpt2"):
        open_checkpoint(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pkl"])
def test_pickles_are_refused_and_never_opened(folder, name):
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / name)  # to open it would block
    with pytest.raises(WeightsError, match=rf"{name} is a pickle"):
        open_checkpoint(folder)


def test_folder_without_weights_is_refused(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"expected model\.safetensors or .*got neither"):
        open_checkpoint(folder)


def test_missing_tensor_is_named(folder):
    name = "model.layers.1.mlp.up_proj.weight"
    change_tensors(folder, lambda t: t.pop(name))
    with pytest.raises(WeightsError, match=rf"{name} is missing"):
        open_checkpoint(folder)


def test_wrong_shape_names_file_tensor_and_both_shapes(folder):
    name = "model.layers.1.mlp.up_proj.weight"
    change_tensors(folder, lambda t: t.update({name: np.zeros((352, 255), np.float32)}))
    with pytest.raises(
        WeightsError,
        match=rf"model\.safetensors: tensor {name}: .*\[352, 256\].*got \[352, 255\]",
    ):
        open_checkpoint(folder)


def test_quantised_tensor_is_refused_by_name(folder):
    name = "model.layers.0.self_attn.q_proj.weight"
    change_tensors(folder, lambda t: t.update({name: np.zeros((256, 256), np.int8)}))
    with pytest.raises(WeightsError, match=rf"{name}: dtype I8"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    "target",
    [
        "../outside.safetensors",
        "/etc/outside.safetensors",
        "a/../../x.safetensors",
        "x\0.safetensors",
    ],
)
def test_index_that_leaves_the_folder_is_refused(folder, target):
    (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
    index = {"weight_map": {"model.norm.weight": target}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(WeightsError, match="leaves the folder"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("[]", "must be a JSON object"),
        ("{}", "weight_map is missing"),
        ('{"weight_map": {"a": 3}}', "weight_map.a must be a string, got 3"),
        ('{"weight_map": {"a": "x.bin"}}', "'a' must be a .safetensors file"),
        ('{"weight_map": {"a": "gone.safetensors"}}', r"gone\.safetensors: cannot be opened"),
        ("{", "not JSON"),
    ],
)
def test_bad_index_is_refused(folder, text, match):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(WeightsError, match=match):
        open_checkpoint(folder)


def test_index_naming_a_file_that_lacks_the_tensor(tmp_path):
    folder = make_checkpoint(tmp_path / "model", "multi_file")
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.norm.weight"] = "model-00001-of-00009.safetensors"
    path.write_text(json.dumps(index))
    with pytest.raises(WeightsError, match=r"model\.norm\.weight is missing"):
        open_checkpoint(folder)


@pytest.mark.parametrize("kind", ["device", "fifo", "folder", "dangling"])
def test_what_is_no_regular_file_is_refused_without_blocking(folder, kind):
    path = folder / "model.safetensors"
    path.unlink()
    if kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("nowhere")
    with pytest.raises(WeightsError, match=r"model\.safetensors: "):
        open_checkpoint(folder)


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_truncated_file_is_refused(folder, keep):
    path = folder / "model.safetensors"
    size = path.stat().st_size
    os.truncate(path, size + keep if keep < 0 else keep)
    with pytest.raises(WeightsError, match=r"model\.safetensors"):
        open_checkpoint(folder)


def test_file_cut_while_open_names_tensor_and_byte(folder):
    with open_checkpoint(folder) as checkpoint:
        os.truncate(folder / "model.safetensors", 50_000)
        with pytest.raises(WeightsError, match=r"tensor model\.norm\.weight: file ends at byte"):
            checkpoint.read_rows("model.norm.weight", 0, 256)


def test_hostile_header_is_refused(folder):
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2**63) + b"{}")
    with pytest.raises(WeightsError, match=r"model\.safetensors"):
        open_checkpoint(folder)
