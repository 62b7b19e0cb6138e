import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tpi.errors import ConfigError
from tpi.model_config import (
    ModelConfig,
    RopeScaling,
    config_to_json,
    load_config,
    load_preset,
    parse_config,
    preset_names,
)

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64,
    "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 100, "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5, "hidden_act": "silu", "torch_dtype": "float16",
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
LLAMA3_ROPE = {
    "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
MISTRAL = {
    "architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": None,
}  # fmt: skip


def parsed(**changes: Any) -> ModelConfig:
    return parse_config({**LLAMA, **changes}, "m/config.json")


def without(key: str) -> dict[str, Any]:
    return {k: v for k, v in LLAMA.items() if k != key}


def test_llama2_keys():
    assert parsed(rope_theta=5000.0) == ModelConfig(
        architecture="llama", num_layers=2, hidden_size=64, num_heads=4, num_kv_heads=2,
        head_size=16, ffn_size=96, vocab_size=100, max_positions=128, rms_eps=1e-5,
        rope_theta=5000.0, dtype="float16", eos_token_ids=(2,), bos_token_id=1,
    )  # fmt: skip


def test_old_llama_without_kv_heads_and_theta():
    config = parse_config(without("num_key_value_heads"), "m")
    assert (config.num_kv_heads, config.rope_theta, config.rope) == (4, 1e4, RopeScaling())


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_theta": 5e5, "rope_scaling": {**LLAMA3_ROPE, "rope_type": "llama3"}},
        {"rope_theta": 5e5, "rope_scaling": {**LLAMA3_ROPE, "type": "llama3"}},
        {"rope_parameters": {**LLAMA3_ROPE, "rope_type": "llama3", "rope_theta": 5e5}},
    ],
)
def test_llama3_rope_in_every_spelling(rope):
    config = parsed(**rope)
    assert config.rope_theta == 5e5
    assert config.rope == RopeScaling("llama3", 8.0, 1.0, 4.0, 32)


def test_linear_rope():
    config = parsed(rope_scaling={"type": "linear", "factor": 4})
    assert config.rope == RopeScaling("linear", 4.0)


@pytest.mark.parametrize("rope", [None, {}, {"rope_type": "default", "rope_theta": 1e4}])
def test_default_rope(rope):
    assert parsed(rope_parameters=rope).rope == RopeScaling()


def test_dtype_in_both_spellings():
    assert parsed(torch_dtype=None, dtype="bfloat16").dtype == "bfloat16"
    assert parsed(torch_dtype="torch.bfloat16").dtype == "bfloat16"


def test_qwen2_has_bias_on_qkv_only():
    config = parsed(architectures=["Qwen2ForCausalLM"], model_type="qwen2", sliding_window=32)
    assert (config.qkv_bias, config.out_bias, config.qk_norm) == (True, False, False)


def test_qwen3_has_norms_and_its_own_head_size():
    config = parsed(architectures=["Qwen3ForCausalLM"], model_type="qwen3", head_dim=32)
    assert (config.qk_norm, config.head_size, config.qkv_bias) == (True, 32, False)


def test_llama_biases_and_tied_embeddings():
    config = parsed(attention_bias=True, mlp_bias=True, tie_word_embeddings=True)
    assert (config.qkv_bias, config.out_bias, config.ffn_bias) == (True, True, True)
    assert config.tied_embeddings


def test_mistral_without_sliding_attention():
    assert parsed(**MISTRAL).architecture == "mistral"
    assert parsed(**{**MISTRAL, "sliding_window": 128}).architecture == "mistral"


def test_several_eos_tokens():
    assert parsed(eos_token_id=[7, 8]).eos_token_ids == (7, 8)
    assert parsed(eos_token_id=None, bos_token_id=None).eos_token_ids == ()


def test_code_of_the_checkpoint_is_ignored():
    assert parsed(auto_map={"AutoModel": "evil.py--Evil"}) == parsed()


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "architectures"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "architectures"),
        ({"architectures": "LlamaForCausalLM"}, "architectures"),
        ({"architectures": None, "model_type": None}, "architectures"),
        ({"model_type": "gpt2"}, "model_type"),
        ({"model_type": "qwen2"}, "model_type"),
        ({"hidden_size": "64"}, "hidden_size"),
        ({"hidden_size": 64.0}, "hidden_size"),
        ({"hidden_size": True}, "hidden_size"),
        ({"hidden_size": 10**18}, "hidden_size"),
        ({"hidden_size": 66}, "hidden_size"),
        ({"hidden_size": 60}, "head_dim"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"num_hidden_layers": -2}, "num_hidden_layers"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"num_key_value_heads": 8}, "num_key_value_heads"),
        ({"head_dim": 15}, "head_dim"),
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps"),
        ({"rms_norm_eps": -1.0}, "rms_norm_eps"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"rope_theta": 0}, "rope_theta"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "type"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}, "rope_type"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor"),
        ({"rope_scaling": {**LLAMA3_ROPE, "type": "llama3", "low_freq_factor": 4}}, "high_freq"),
        ({"rope_scaling": [1]}, "rope_scaling"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"torch_dtype": "float8_e4m3fn"}, "torch_dtype"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"eos_token_id": [1, "2"]}, "eos_token_id"),
        ({"eos_token_id": -1}, "eos_token_id"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({**MISTRAL, "sliding_window": 64}, "sliding_window"),
        ({**MISTRAL, "num_key_value_heads": None}, None),
    ],
)
def test_refused_with_the_name_of_the_key(changes, key):
    if key is None:
        assert parsed(**changes).num_kv_heads == 4  # null means all heads, as in Transformers
        return
    with pytest.raises(ConfigError) as caught:
        parsed(**changes)
    message = str(caught.value)
    assert message.startswith("m/config.json: ")
    assert key in message
    assert " must be " in message
    assert ", got " in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "key",
    [
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "vocab_size", "max_position_embeddings", "rms_norm_eps",
    ],
)  # fmt: skip
def test_missing_key_is_named(key):
    with pytest.raises(ConfigError, match=f"^m: {key} is missing; use the config.json"):
        parse_config(without(key), "m")


def test_missing_sliding_window_of_mistral_is_4096_as_in_transformers():
    raw = {k: v for k, v in {**LLAMA, **MISTRAL}.items() if k != "sliding_window"}
    assert parse_config(raw, "m").architecture == "mistral"  # 128 positions never reach it
    with pytest.raises(ConfigError, match="sliding_window"):
        parse_config({**raw, "max_position_embeddings": 32768}, "m")


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text("a1é\n\0", max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("a1é\n\0", max_size=4), inner)
    ),
    max_leaves=5,
)


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from([*LLAMA, "rope_scaling", "rope_parameters", "head_dim", "sliding_window"]),
        JSON_VALUES,
        max_size=4,
    )
)
def test_any_json_gives_a_config_or_config_error(changes):
    try:
        config = parsed(**changes)
    except ConfigError:
        return
    assert parse_config(config_to_json(config), "again") == config


# Layers, width, heads, KV heads, FFN, vocabulary, float32 GiB (arXiv:2410.00531, table 5 but for
# the first, and the config.json of each model).
SHAPES = {
    "tinyllama-1.1b": (22, 2048, 32, 4, 5632, 32000, 4.1),
    "llama2-3b": (26, 3200, 32, 32, 8640, 32000, 12.8),
    "llama2-7b": (32, 4096, 32, 32, 11008, 32000, 25.1),
    "llama2-13b": (40, 5120, 40, 40, 13824, 32000, 48.5),
    "llama2-70b": (80, 8192, 64, 8, 28672, 32000, 257.0),
    "llama3.1-8b": (32, 4096, 32, 8, 14336, 128256, 29.9),
    "llama3.1-70b": (80, 8192, 64, 8, 28672, 128256, 262.8),
    "yi-34b": (60, 7168, 56, 8, 20480, 64000, 128.1),
}


@pytest.mark.parametrize("name", SHAPES)
def test_preset_has_the_true_shape(name):
    config = load_preset(name)
    got = (
        config.num_layers, config.hidden_size, config.num_heads, config.num_kv_heads,
        config.ffn_size, config.vocab_size,
    )  # fmt: skip
    assert got == SHAPES[name][:-1]
    assert num_parameters(config) * 4 / 2**30 == pytest.approx(SHAPES[name][-1], abs=0.06)


def num_parameters(config: ModelConfig) -> int:
    heads = config.num_heads + config.num_kv_heads
    attn = 2 * config.hidden_size * config.head_size * heads
    ffn = 3 * config.hidden_size * config.ffn_size
    return config.num_layers * (attn + ffn) + 2 * config.vocab_size * config.hidden_size


def test_tiny_is_small_and_groups_heads():
    config = load_preset("tiny")
    assert num_parameters(config) == pytest.approx(50e6, rel=0.1)
    assert config.num_kv_heads < config.num_heads


def test_preset_names_and_the_nearest_one():
    assert set(preset_names()) == {*SHAPES, "tiny"}
    with pytest.raises(ConfigError, match=r"did you mean 'llama2-70b'\?"):
        load_preset("lama2-70b")
    with pytest.raises(ConfigError):
        load_preset("../presets/tiny")


def write_config(folder: Path, data: bytes) -> Path:
    (folder / "config.json").write_bytes(data)
    return folder


def test_load_config_reads_the_folder(tmp_path):
    assert load_config(write_config(tmp_path, json.dumps(LLAMA).encode())) == parsed()


def test_load_config_follows_a_link_to_a_file_as_in_a_hub_cache(tmp_path):
    (tmp_path / "blob").write_text(json.dumps(LLAMA))
    (tmp_path / "config.json").symlink_to("blob")
    assert load_config(tmp_path) == parsed()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe{}", "UTF-8"),
        (b"[]", "JSON object"),
        (b"{", "not JSON"),
        (b'{"a": 1, "a": 2}', "twice"),
        (b'{"a": NaN}', "finite"),
        (b'{"a": 1e999}', "finite"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not JSON"),
        (b"[" * 500_000, "nested"),
        (b" " * (1 << 20) + b"{}", "at most"),
    ],
)
def test_hostile_config_file(tmp_path, data, reason):
    with pytest.raises(ConfigError, match=reason) as caught:
        load_config(write_config(tmp_path, data))
    assert str(tmp_path / "config.json") in str(caught.value)


def test_ten_megabytes_of_nesting_are_refused_unparsed(tmp_path):
    write_config(tmp_path, b"[" * 10_000_000)
    with pytest.raises(ConfigError, match="at most 1048576 bytes"):
        load_config(tmp_path)


def test_config_that_is_no_regular_file_does_not_block(tmp_path):
    with pytest.raises(ConfigError, match="no such"):
        load_config(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="No such file"):
        load_config(tmp_path)
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(ConfigError, match="a FIFO"):
        load_config(tmp_path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").symlink_to("/dev/zero")
    with pytest.raises(ConfigError, match="a device"):
        load_config(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("class_name", "options"),
    [
        ("LlamaConfig", {}),
        ("LlamaConfig", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5,
                                             **LLAMA3_ROPE}}),
        ("LlamaConfig", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
        ("MistralConfig", {"sliding_window": None}),
        ("Qwen2Config", {}),
        ("Qwen3Config", {"head_dim": 32, "attention_bias": True}),
    ],
)  # fmt: skip
def test_what_transformers_writes_is_read_as_it_was_meant(tmp_path, class_name, options):
    import transformers

    names = {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100,
        "max_position_embeddings": 64, "dtype": "bfloat16",
    }  # fmt: skip
    theirs = getattr(transformers, class_name)(**names, **options)
    theirs.architectures = [class_name.replace("Config", "ForCausalLM")]
    theirs.save_pretrained(tmp_path)
    ours = load_config(tmp_path)
    assert (ours.architecture, ours.dtype) == (theirs.model_type, "bfloat16")
    assert (ours.head_size, ours.num_kv_heads) == (options.get("head_dim", 16), 2)
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"]
    assert ours.rope.kind.replace("none", "default") == theirs.rope_parameters["rope_type"]
    assert ours.tied_embeddings == theirs.tie_word_embeddings
    assert ours.out_bias == options.get("attention_bias", False)
    assert ours.rms_eps == theirs.rms_norm_eps
    # And what we write is read by Transformers as the same model.
    (tmp_path / "config.json").write_text(json.dumps(config_to_json(ours)))
    again = transformers.AutoConfig.from_pretrained(tmp_path)
    assert type(again) is type(theirs)
    for key in (*names, "rms_norm_eps", "rope_parameters", "tie_word_embeddings"):
        assert getattr(again, key) == getattr(theirs, key), key
