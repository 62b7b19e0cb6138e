from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from tests.checkpoints import reference_logits, reference_tokens
from tpi.errors import ConfigError
from tpi.model_config import ModelConfig, RopeScaling, load_preset
from tpi.weights.checkpoint import expected_tensors, open_checkpoint
from tpi.weights.dtypes import RawArray, from_float32, to_float32
from tpi.weights.hf_folder import required_hf_bytes, write_hf_folder
from tpi.weights.shard import make_shard_plan
from tpi.weights.split import split
from tpi.weights.synthetic import SyntheticSource

CONFIG = ModelConfig(
    architecture="llama", num_layers=3, hidden_size=128, num_heads=8, num_kv_heads=2,
    head_size=16, ffn_size=208, vocab_size=512, max_positions=256, rms_eps=1e-5, rope_theta=1e4,
    dtype="bfloat16", bos_token_id=1, eos_token_ids=(2,),
)  # fmt: skip
MATRIX = "model.layers.1.mlp.down_proj.weight"
VARIANTS = {
    "llama": CONFIG,
    "tied": replace(CONFIG, tied_embeddings=True),
    "llama3": replace(CONFIG, rope=RopeScaling("llama3", 4.0, 1.0, 4.0, 16)),
    "mistral": replace(CONFIG, architecture="mistral"),
    "qwen2": replace(CONFIG, architecture="qwen2", qkv_bias=True),
    "qwen3": replace(CONFIG, architecture="qwen3", qk_norm=True),
    "bias": replace(CONFIG, qkv_bias=True, out_bias=True, ffn_bias=True),
}


def whole(source: SyntheticSource, name: str) -> RawArray:
    raw = source.read_rows(name, 0, source.shape(name)[0])
    return to_float32(raw, source.tensor_dtype(name))


@pytest.mark.parametrize("name", [MATRIX, "model.norm.weight"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_rows_do_not_depend_on_how_they_are_read(name, dtype):
    config = replace(CONFIG, ffn_size=209)  # rows that begin in the middle of a random word
    source = SyntheticSource(config, dtype=dtype)
    rows = source.shape(name)[0]
    cuts = [0, 1, 6, 7, 100, rows]
    parts = [source.read_rows(name, a, b) for a, b in pairwise(cuts)]
    np.testing.assert_array_equal(np.concatenate(parts), source.read_rows(name, 0, rows))


def test_all_storage_dtypes_hold_the_same_numbers():
    for name in expected_tensors(VARIANTS["bias"]):
        values = [
            whole(SyntheticSource(VARIANTS["bias"], dtype=dtype), name)
            for dtype in ("bfloat16", "float16", "float32")
        ]
        np.testing.assert_array_equal(values[0], values[1])
        np.testing.assert_array_equal(values[0], values[2])


@pytest.mark.parametrize("preset", ["tiny", "llama2-70b"])
def test_scales_follow_the_fan_in(preset):
    source = SyntheticSource(load_preset(preset), dtype="float32")
    for name in ("model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.down_proj.weight"):
        sample = source.read_rows(name, 0, 16)
        gain = np.sqrt(np.mean(sample**2) * source.shape(name)[1])
        assert 1.25 < gain < 2.05
        assert np.abs(sample).max() < 4.01 * np.abs(sample).min()
        assert abs(np.mean(np.sign(sample))) < 0.1
    norm = source.read_rows("model.norm.weight", 0, 64)
    assert 0.75 <= norm.min() < norm.max() <= 1.25


def test_seed_tensor_and_layer_give_other_numbers():
    base = whole(SyntheticSource(CONFIG), MATRIX)
    assert not np.array_equal(base, whole(SyntheticSource(CONFIG, seed=1), MATRIX))
    assert not np.array_equal(base, whole(SyntheticSource(CONFIG), MATRIX.replace(".1.", ".2.")))


def test_distinct_layers_repeat():
    source = SyntheticSource(CONFIG, distinct_layers=1)
    first = whole(source, MATRIX.replace(".1.", ".0."))
    np.testing.assert_array_equal(whole(source, MATRIX), first)
    with pytest.raises(ConfigError, match="1 to 3, got 4"):
        SyntheticSource(CONFIG, distinct_layers=4)
    with pytest.raises(ConfigError, match="dtype"):
        SyntheticSource(CONFIG, dtype="int8")


def test_numbers_never_change():
    """Records of timings name a seed; other numbers under the same seed would void them."""
    source = SyntheticSource(CONFIG)
    assert source.read_rows(MATRIX, 0, 1)[0, :4].tolist() == [15747, 15772, 15780, 48530]


@pytest.mark.parametrize("variant", VARIANTS)
def test_transformers_loads_the_folder_and_decodes_distinct_tokens(tmp_path, variant):
    source = SyntheticSource(VARIANTS[variant])
    num_bytes = write_hf_folder(source, tmp_path / "hf")
    assert num_bytes >= required_hf_bytes(source.config, "bfloat16")
    with open_checkpoint(tmp_path / "hf") as checkpoint:
        assert checkpoint.config == source.config
    tokens = reference_tokens(tmp_path / "hf")
    assert len(set(tokens)) >= 16
    logits = reference_logits(tmp_path / "hf", tokens)
    assert torch.isfinite(logits).all()
    assert 0.1 < logits.std() < 10


@pytest.mark.parametrize("dtype", [None, "float32"])
def test_folder_and_shards_hold_the_same_numbers(tmp_path, dtype):
    source = SyntheticSource(CONFIG)
    write_hf_folder(source, tmp_path / "hf", dtype=dtype, max_file_bytes=100_000)
    files = sorted((tmp_path / "hf").glob("model-*.safetensors"))
    assert len(files) > 3
    with open_checkpoint(tmp_path / "hf") as checkpoint:
        for devices in (1, 3):
            plan = make_shard_plan(CONFIG, devices)
            split(source, plan, tmp_path / f"a{devices}", dtype=dtype)
            split(checkpoint, plan, tmp_path / f"b{devices}")
            for path in sorted((tmp_path / f"a{devices}").rglob("*.safetensors")):
                other = tmp_path / f"b{devices}" / path.relative_to(tmp_path / f"a{devices}")
                assert path.read_bytes() == other.read_bytes()


def test_writing_the_folder_again_does_nothing_and_another_is_refused(tmp_path):
    source = SyntheticSource(CONFIG)
    assert write_hf_folder(source, tmp_path) > 0
    assert write_hf_folder(source, tmp_path) == 0
    with pytest.raises(ConfigError, match="another model"):
        write_hf_folder(SyntheticSource(CONFIG, seed=1), tmp_path)


def test_interrupted_folder_has_no_config_and_goes_on(tmp_path):
    source = SyntheticSource(CONFIG)

    def stop(done, total):
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_hf_folder(source, tmp_path / "a", max_file_bytes=100_000, progress=stop)
    assert not (tmp_path / "a" / "config.json").exists()
    assert not list((tmp_path / "a").glob("*.partial"))
    rest = write_hf_folder(source, tmp_path / "a", max_file_bytes=100_000)
    whole_size = write_hf_folder(source, tmp_path / "b", max_file_bytes=100_000)
    assert 0 < rest < whole_size
    for path in (tmp_path / "b").glob("model*"):
        assert path.read_bytes() == (tmp_path / "a" / path.name).read_bytes()


def test_a_folder_made_by_others_is_not_touched(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="not made here"):
        write_hf_folder(SyntheticSource(CONFIG), tmp_path)
    assert (tmp_path / "config.json").read_text() == "{}"


def test_conversions_round_as_torch_does():
    generator = np.random.default_rng(0)
    values = generator.standard_normal(4096).astype(np.float32) * np.float32(2.0) ** (
        generator.integers(-20, 15, 4096).astype(np.float32)
    )
    values[:3] = [0.0, -0.0, np.inf]
    nan = np.array([np.nan], np.float32)
    assert np.isnan(to_float32(from_float32(nan, "bfloat16"), "bfloat16"))
    for dtype in ("bfloat16", "float16"):
        expected = torch.from_numpy(values).to(getattr(torch, dtype))
        got = from_float32(values, dtype)
        bits = expected.view(torch.int16).numpy().view(np.uint16)
        np.testing.assert_array_equal(got.view(np.uint16), bits)
        np.testing.assert_array_equal(to_float32(got, dtype), expected.float().numpy())
