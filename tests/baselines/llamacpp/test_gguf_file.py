"""A GGUF file holds the checkpoint's numbers, whole or not at all."""

import signal
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from baselines.llamacpp import gguf_file
from baselines.llamacpp.gguf_file import make_gguf, write_gguf
from baselines.llamacpp.gguf_layout import MODEL_FILE, problems, required_gguf_bytes
from baselines.llamacpp.gguf_source import GgufSource
from tpi.errors import ConfigError, WeightsError
from tpi.model_config import ModelConfig, RopeScaling
from tpi.weights.checkpoint import expected_tensors
from tpi.weights.dtypes import to_float32
from tpi.weights.synthetic import SyntheticSource

pytest.importorskip("llama_cpp", reason="llama.cpp is an extra: make llamacpp")

ROOT = Path(__file__).parents[3]
CONFIG = ModelConfig(
    architecture="llama", num_layers=2, hidden_size=256, num_heads=8, num_kv_heads=2,
    head_size=32, ffn_size=512, vocab_size=512, max_positions=256, rms_eps=1e-5, rope_theta=1e4,
    dtype="bfloat16", bos_token_id=1, eos_token_ids=(2,),
)  # fmt: skip
VARIANTS = {
    "llama": CONFIG,
    "tied": replace(CONFIG, tied_embeddings=True),
    "llama3": replace(CONFIG, rope=RopeScaling("llama3", 4.0, 1.0, 4.0, 16)),
    "bias": replace(CONFIG, qkv_bias=True, out_bias=True, ffn_bias=True),
    "qwen2": replace(CONFIG, architecture="qwen2", qkv_bias=True),
    "qwen3": replace(CONFIG, architecture="qwen3", qk_norm=True),
}


def tensors_of(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    import gguf

    found = gguf.GGUFReader(path).tensors
    return {t.name: (t.tensor_type.name, tuple(t.shape[::-1].tolist())) for t in found}


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("file_type", ["float32", "bfloat16"])
def test_numbers_come_back_in_hugging_faces_order(name, file_type, tmp_path):
    source = SyntheticSource(VARIANTS[name])
    make_gguf(source, tmp_path, file_type)
    back = GgufSource(tmp_path / MODEL_FILE, VARIANTS[name])
    for tensor, shape in expected_tensors(VARIANTS[name]).items():
        raw = source.read_rows(tensor, 0, shape[0])
        expected = to_float32(raw, source.tensor_dtype(tensor))
        np.testing.assert_array_equal(back.read_rows(tensor, 0, shape[0]), expected, tensor)


def as_llamacpp_converts(rows: np.ndarray, heads: int) -> np.ndarray:
    """`LlamaModel.permute` of llama.cpp's convert_hf_to_gguf.py."""
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


@pytest.mark.parametrize("name", ["llama", "bias", "qwen2"])
def test_queries_and_keys_stand_as_llamacpps_own_converter_puts_them(name, tmp_path):
    import gguf

    config = VARIANTS[name]
    source = SyntheticSource(config)
    write_gguf(source, tmp_path / name, "float32")
    found = {t.name: t.data for t in gguf.GGUFReader(tmp_path / name).tensors}
    heads = {"q": config.num_heads, "k": config.num_kv_heads, "v": 0}
    for letter, kind in product(heads, ("weight", "bias") if config.qkv_bias else ("weight",)):
        tensor = f"model.layers.1.self_attn.{letter}_proj.{kind}"
        stored = source.read_rows(tensor, 0, source.shape(tensor)[0])
        rows = to_float32(stored, source.tensor_dtype(tensor))
        if config.architecture == "llama" and heads[letter]:
            moved = as_llamacpp_converts(rows, heads[letter])
            assert not np.array_equal(moved, rows)
            rows = moved
        assert found[f"blk.1.attn_{letter}.{kind}"].tobytes() == rows.tobytes(), tensor


def test_vectors_stay_float32_and_what_is_tied_stands_once(tmp_path):
    for name in ("tied", "bias", "llama3"):
        write_gguf(SyntheticSource(VARIANTS[name]), tmp_path / name, "bfloat16")
        for tensor, (kind, shape) in tensors_of(tmp_path / name).items():
            assert kind == ("F32" if len(shape) == 1 else "BF16"), tensor
    assert "output.weight" not in tensors_of(tmp_path / "tied")
    assert "output.weight" in tensors_of(tmp_path / "bias")
    assert tensors_of(tmp_path / "llama3")["rope_freqs.weight"] == ("F32", (16,))


@pytest.mark.parametrize("name", ["llama", "tied"])
@pytest.mark.parametrize("file_type", ["float32", "float16", "bfloat16", "q8_0", "q4_0"])
def test_bytes_are_known_before(name, file_type, tmp_path):
    make_gguf(SyntheticSource(VARIANTS[name]), tmp_path, file_type)
    size = (tmp_path / MODEL_FILE).stat().st_size
    assert required_gguf_bytes(VARIANTS[name], file_type) == pytest.approx(size, rel=0.01)


@pytest.mark.parametrize(("file_type", "most"), [("q8_0", 0.01), ("q4_0", 0.13)])
def test_quantized_numbers_are_near_the_originals(file_type, most, tmp_path):
    source = SyntheticSource(CONFIG)
    make_gguf(source, tmp_path, file_type)
    back = GgufSource(tmp_path / MODEL_FILE, CONFIG)
    name = "model.layers.0.mlp.gate_proj.weight"
    exact = to_float32(source.read_rows(name, 0, 64), "bfloat16")
    error = np.abs(back.read_rows(name, 0, 64) - exact).max() / np.abs(exact).max()
    assert 0 < error <= most
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".gguf"] == [MODEL_FILE]


def test_interrupted_it_leaves_nothing_under_its_name(tmp_path, monkeypatch):
    class Broken(SyntheticSource):
        def read_rows(self, name, start, stop):
            if "layers.1.mlp.up" in name:
                raise WeightsError("the disk is gone")
            return super().read_rows(name, start, stop)

    for file_type in ("float32", "q8_0"):
        with pytest.raises(WeightsError, match="the disk is gone"):
            make_gguf(Broken(CONFIG), tmp_path / file_type, file_type)
        assert not [p for p in (tmp_path / file_type).iterdir() if p.suffix == ".gguf"]

    def refuse(*_):
        raise WeightsError("quantizing failed")

    monkeypatch.setattr(gguf_file, "quantize", refuse)
    with pytest.raises(WeightsError, match="quantizing failed"):
        make_gguf(SyntheticSource(CONFIG), tmp_path / "new", "q8_0")
    assert not [p for p in (tmp_path / "new").iterdir() if p.suffix == ".gguf"]


KILLED = """
import os, signal, sys
from pathlib import Path
from baselines.llamacpp import gguf_file
from tests.baselines.llamacpp.test_gguf_file import CONFIG
from tpi.weights.synthetic import SyntheticSource

def die(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)

class Fatal(SyntheticSource):
    def read_rows(self, name, start, stop):
        if sys.argv[3] == "source" and "layers.1.mlp.up" in name:
            die()
        return super().read_rows(name, start, stop)

if sys.argv[3] == "quantizer":
    gguf_file.quantize = die
gguf_file.make_gguf(Fatal(CONFIG), Path(sys.argv[1]), sys.argv[2])
"""


@pytest.mark.parametrize(
    ("file_type", "where"), [("float32", "source"), ("q8_0", "source"), ("q8_0", "quantizer")]
)
def test_killed_it_leaves_nothing_under_its_name_and_is_made_anew(file_type, where, tmp_path):
    arguments = [sys.executable, "-c", KILLED, str(tmp_path), file_type, where]
    assert subprocess.run(arguments, cwd=ROOT, check=False).returncode == -signal.SIGKILL
    assert not (tmp_path / MODEL_FILE).exists()
    make_gguf(SyntheticSource(CONFIG), tmp_path, file_type)
    assert [p.name for p in tmp_path.iterdir() if "gguf" in p.name] == [MODEL_FILE]
    size = (tmp_path / MODEL_FILE).stat().st_size
    assert size == pytest.approx(required_gguf_bytes(CONFIG, file_type), rel=0.01)


def test_what_is_there_is_not_written_again_and_what_is_foreign_not_touched(tmp_path):
    make_gguf(SyntheticSource(CONFIG), tmp_path, "bfloat16")
    before = (tmp_path / MODEL_FILE).stat()
    make_gguf(SyntheticSource(CONFIG), tmp_path, "bfloat16")
    assert (tmp_path / MODEL_FILE).stat().st_mtime_ns == before.st_mtime_ns
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / MODEL_FILE).write_bytes(b"mine")
    with pytest.raises(ConfigError, match="not made here; not touched"):
        make_gguf(SyntheticSource(CONFIG), foreign, "bfloat16")
    assert (foreign / MODEL_FILE).read_bytes() == b"mine"


def test_progress_ends_at_the_whole(tmp_path):
    seen: list[tuple[int, int]] = []
    make_gguf(SyntheticSource(CONFIG), tmp_path, "float32", lambda *now: seen.append(now))
    assert seen == sorted(seen)
    assert seen[-1][0] == pytest.approx(seen[-1][1], rel=0.01)


@pytest.mark.parametrize(
    ("changes", "file_type", "words"),
    [
        ({}, "float32", None),
        ({}, "q4_0", None),
        ({"ffn_size": 520}, "q8_0", "intermediate_size is 520"),
        ({"ffn_size": 520}, "bfloat16", None),
        ({"architecture": "qwen3", "out_bias": True}, "float32", "no bias after attention"),
        ({"num_layers": 513}, "float32", "up to 512 layers, the model has 513"),
        (
            {"architecture": "qwen2", "rope": VARIANTS["llama3"].rope},
            "float32",
            "no llama3 rope scaling",
        ),
    ],
)
def test_problems_are_named(changes, file_type, words, tmp_path):
    config = replace(CONFIG, **changes)
    found = problems(config, file_type)
    assert (words is None) == (found == [])
    if words is not None:
        assert words in found[0]
        with pytest.raises(ConfigError, match=words):
            make_gguf(SyntheticSource(config), tmp_path, file_type)


def test_a_file_of_another_model_is_refused(tmp_path):
    make_gguf(SyntheticSource(CONFIG), tmp_path, "bfloat16")
    with pytest.raises(WeightsError, match=r"expected shape \[480, 256\], got \[512, 256\]"):
        GgufSource(tmp_path / MODEL_FILE, replace(CONFIG, ffn_size=480))
