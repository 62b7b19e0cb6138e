"""What a model is: the numbers of a Hugging Face `config.json`, checked and in our own words.

`parse_config` turns the keys of a Llama-family `config.json` (the spelling of Transformers 5 and
the older one) into a `ModelConfig` and refuses what the engine would compute differently from
Transformers. `config_to_json` writes the same form back, so there is one parser for checkpoints,
presets and shard manifests. Nothing in a checkpoint's folder is ever executed: `auto_map` is
ignored. Read `parse_config` first.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from tpi.errors import ConfigError
from tpi.files import parse_json, read_small_file
from tpi.jsonkeys import JsonKeys, json_object

CONFIG_FILE = "config.json"
MAX_CONFIG_BYTES = 1 << 20
DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
DTYPES = tuple(DTYPE_BYTES)

_ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
# Far above any known model (405B: 126 layers, width 16384; vocabularies of 262144) and low
# enough that no product of two of them can overflow or exhaust memory by itself.
_MAX_LAYERS = 1024
_MAX_WIDTH = 1 << 17
_MAX_HEADS = 2048
_MAX_HEAD_SIZE = 2048
_MAX_FFN = 1 << 20
_MAX_VOCAB = 1 << 22
_MAX_POSITIONS = 1 << 26


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How rotary frequencies are changed for long contexts: "none", "linear" or "llama3"."""

    kind: str = "none"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 0


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The whole model's numbers; shares of ranks live in `ShardPlan`, never here."""

    architecture: str
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    ffn_size: int
    vocab_size: int
    max_positions: int
    rms_eps: float
    rope_theta: float
    rope: RopeScaling = field(default_factory=RopeScaling)
    qkv_bias: bool = False
    out_bias: bool = False
    ffn_bias: bool = False
    qk_norm: bool = False
    tied_embeddings: bool = False
    dtype: str = "float32"
    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None

    @property
    def q_per_kv(self) -> int:
        """How many query heads share one KV head."""
        return self.num_heads // self.num_kv_heads


class _ConfigKeys(JsonKeys):
    """The keys of a `config.json`; what is wrong with it is the user's to change."""

    error = ConfigError
    advice = "use the config.json that belongs to this model"

    def token_ids(self, key: str) -> tuple[int, ...]:
        """One token id or a list of them; none if the key is missing or null."""
        value = self.raw.get(key)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        for item in ids:
            if not isinstance(item, int) or isinstance(item, bool) or not 0 <= item < _MAX_VOCAB:
                raise self.fail(key, "a token id or a list of token ids")
        return tuple(ids)


def parse_config(raw: Mapping[str, object], where: str) -> ModelConfig:
    """Check the content of a `config.json` and put it into our words.

    Args:
        raw: The parsed JSON object.
        where: File or folder, for the error messages.

    Raises:
        ConfigError: A key is missing, of the wrong type, out of bounds, or asks for something
            that is not implemented (another architecture, rope type, activation, sliding
            window, quantised weights).
    """
    keys = _ConfigKeys(raw, where)
    architecture = _architecture(keys)
    hidden_size = keys.integer("hidden_size", 1, _MAX_WIDTH)
    num_heads = keys.integer("num_attention_heads", 1, _MAX_HEADS)
    max_positions = keys.integer("max_position_embeddings", 1, _MAX_POSITIONS)
    _refuse_unsupported(keys, architecture, max_positions)
    theta, rope = _rope(keys, max_positions)
    attention_bias = keys.flag("attention_bias") and architecture in ("llama", "qwen3")
    bos = keys.token_ids("bos_token_id")
    return ModelConfig(
        architecture=architecture,
        num_layers=keys.integer("num_hidden_layers", 1, _MAX_LAYERS),
        hidden_size=hidden_size,
        num_heads=num_heads,
        num_kv_heads=_num_kv_heads(keys, architecture, num_heads),
        head_size=_head_size(keys, architecture, hidden_size, num_heads),
        ffn_size=keys.integer("intermediate_size", 1, _MAX_FFN),
        vocab_size=keys.integer("vocab_size", 1, _MAX_VOCAB),
        max_positions=max_positions,
        rms_eps=keys.number("rms_norm_eps", 0.0, 0.1),
        rope_theta=theta,
        rope=rope,
        qkv_bias=attention_bias or architecture == "qwen2",
        out_bias=attention_bias,
        ffn_bias=keys.flag("mlp_bias") and architecture == "llama",
        qk_norm=architecture == "qwen3",
        tied_embeddings=keys.flag("tie_word_embeddings"),
        dtype=_dtype(keys),
        eos_token_ids=keys.token_ids("eos_token_id"),
        bos_token_id=bos[0] if bos else None,
    )


def _architecture(keys: _ConfigKeys) -> str:
    supported = ", ".join(_ARCHITECTURES)
    advice = f"models that run are {supported}"
    model_type = keys.word("model_type", "")
    if model_type and model_type not in _ARCHITECTURES.values():
        raise keys.fail("model_type", "one of " + ", ".join(_ARCHITECTURES.values()), advice)
    if not keys.given("architectures"):
        if not model_type:
            raise keys.fail("architectures", "a list with one class name", advice)
        return model_type
    names = keys.raw["architectures"]
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
        raise keys.fail("architectures", "a list with one class name", advice)
    if names[0] not in _ARCHITECTURES:
        raise keys.fail("architectures", f"one of {supported}", "other models do not run")
    if model_type not in ("", _ARCHITECTURES[names[0]]):
        raise keys.fail("model_type", f"{_ARCHITECTURES[names[0]]!r} for {names[0]}")
    return _ARCHITECTURES[names[0]]


def _refuse_unsupported(keys: _ConfigKeys, architecture: str, max_positions: int) -> None:
    if keys.given("quantization_config"):
        raise keys.fail(
            "quantization_config", "no quantisation", "use the float32, float16 or bfloat16 model"
        )
    if keys.word("hidden_act", "silu") not in ("silu", "swish"):
        raise keys.fail("hidden_act", "'silu'", "other activations do not run")
    advice = "only models with full attention run"
    if architecture == "mistral":
        # Transformers takes 4096 where Mistral's key is missing; null means full attention.
        missing = "sliding_window" not in keys.raw
        if (missing or keys.given("sliding_window")) and (
            keys.integer("sliding_window", 1, _MAX_POSITIONS, 4096) < max_positions
        ):
            raise keys.fail("sliding_window", f"null, or at least {max_positions}", advice)
    elif keys.flag("use_sliding_window"):
        raise keys.fail("use_sliding_window", "false", advice)
    layer_types = keys.raw.get("layer_types")
    if layer_types is not None and (
        not isinstance(layer_types, list) or any(t != "full_attention" for t in layer_types)
    ):
        raise keys.fail("layer_types", "'full_attention' in every layer", advice)


def _num_kv_heads(keys: _ConfigKeys, architecture: str, num_heads: int) -> int:
    # Only Llama's configs may leave the key out; the defaults of the others are not the heads.
    may_miss = architecture == "llama" or "num_key_value_heads" in keys.raw
    num_kv_heads = keys.integer(
        "num_key_value_heads", 1, num_heads, num_heads if may_miss else None
    )
    if num_heads % num_kv_heads:
        raise keys.fail("num_key_value_heads", f"a divisor of num_attention_heads ({num_heads})")
    return num_kv_heads


def _head_size(keys: _ConfigKeys, architecture: str, hidden_size: int, num_heads: int) -> int:
    default = None if architecture == "qwen3" else max(hidden_size // num_heads, 1)
    if default and not keys.given("head_dim") and hidden_size % num_heads:
        raise keys.fail(
            "hidden_size", f"a multiple of num_attention_heads ({num_heads})", "or give head_dim"
        )
    head_size = keys.integer("head_dim", 1, _MAX_HEAD_SIZE, default)
    if head_size % 2:
        raise keys.fail("head_dim", "an even number, since rotary embedding turns pairs")
    return head_size


def _dtype(keys: _ConfigKeys) -> str:
    key = "dtype" if keys.given("dtype") else "torch_dtype"
    name = keys.word(key, "float32").removeprefix("torch.")
    if name not in DTYPES:
        raise keys.fail(key, "one of " + ", ".join(DTYPES))
    return name


def _rope(keys: _ConfigKeys, max_positions: int) -> tuple[float, RopeScaling]:
    """Base and scaling; `rope_scaling` wins over `rope_parameters`, as in Transformers."""
    theta = keys.number("rope_theta", 1.0, 1e12, 1e4)
    name = "rope_scaling" if keys.raw.get("rope_scaling") else "rope_parameters"
    inner = _ConfigKeys(keys.mapping(name) if keys.given(name) else {}, f"{keys.where}: {name}")
    theta = inner.number("rope_theta", 1.0, 1e12, theta)
    for holder in (keys, inner):
        if holder.number("partial_rotary_factor", 0.0, 1.0, 1.0) != 1.0:
            raise holder.fail("partial_rotary_factor", "1", "partly rotated heads do not run")
    key = "rope_type" if inner.given("rope_type") else "type"
    kind = inner.word(key, "default")
    if kind == "default":
        return theta, RopeScaling()
    if kind not in ("linear", "llama3"):
        raise inner.fail(key, "'default', 'linear' or 'llama3'", "other rope types do not run")
    factor = inner.number("factor", 1e-3, 1e6)
    if kind == "linear":
        return theta, RopeScaling("linear", factor)
    low = inner.number("low_freq_factor", 1e-3, 1e6)
    high = inner.number("high_freq_factor", 1e-3, 1e6)
    if low >= high:
        raise inner.fail("high_freq_factor", f"more than low_freq_factor ({low:g})")
    name = "original_max_position_embeddings"
    holder = keys if keys.given(name) else inner  # outside wins, too
    original = holder.integer(name, 1, _MAX_POSITIONS, max_positions)
    return theta, RopeScaling("llama3", factor, low, high, original)


def load_config(folder: Path) -> ModelConfig:
    """Read `config.json` of a checkpoint folder; the only file of it that is read here.

    Raises:
        ConfigError: The folder or file is missing, not a regular file, larger than 1 MiB, not
            strict JSON, or describes a model that does not run.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: expected a folder with a {CONFIG_FILE}, got no such folder")
    path = folder / CONFIG_FILE
    data = read_small_file(path, MAX_CONFIG_BYTES, ConfigError, follow=True)
    return _parse_bytes(data, str(path))


def _parse_bytes(data: bytes, where: str) -> ModelConfig:
    return parse_config(
        json_object(parse_json(data, where, ConfigError), where, ConfigError), where
    )


def preset_names() -> tuple[str, ...]:
    """Names of the known models, sorted."""
    files = resources.files("tpi.presets").iterdir()
    return tuple(sorted(f.name[: -len(".json")] for f in files if f.name.endswith(".json")))


def load_preset(name: str) -> ModelConfig:
    """The true shape of a known model, e.g. "llama2-70b".

    Raises:
        ConfigError: No such preset; the message has the nearest name.
    """
    names = preset_names()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.0)
        raise ConfigError(
            f"model preset: expected one of {', '.join(names)}, got {name[:80]!r}"
            f"; did you mean {near[0]!r}?"
        )
    data = (resources.files("tpi.presets") / f"{name}.json").read_bytes()
    return _parse_bytes(data, f"preset {name}")


def config_to_json(config: ModelConfig) -> dict[str, object]:
    """A `config.json` in the spelling of Transformers 5; `config_from_json` is its inverse."""
    rope: dict[str, object] = {"rope_type": "default", "rope_theta": config.rope_theta}
    if config.rope.kind != "none":
        rope |= {"rope_type": config.rope.kind, "factor": config.rope.factor}
    if config.rope.kind == "llama3":
        rope |= {
            "low_freq_factor": config.rope.low_freq_factor,
            "high_freq_factor": config.rope.high_freq_factor,
            "original_max_position_embeddings": config.rope.original_max_positions,
        }
    classes = {ours: theirs for theirs, ours in _ARCHITECTURES.items()}
    return {
        "architectures": [classes[config.architecture]],
        "model_type": config.architecture,
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.hidden_size,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_size,
        "intermediate_size": config.ffn_size,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_positions,
        "hidden_act": "silu",
        "rms_norm_eps": config.rms_eps,
        "rope_parameters": rope,
        "sliding_window": None,
        "attention_bias": config.out_bias,
        "mlp_bias": config.ffn_bias,
        "tie_word_embeddings": config.tied_embeddings,
        "dtype": config.dtype,
        "eos_token_id": list(config.eos_token_ids) or None,
        "bos_token_id": config.bos_token_id,
    }


config_from_json = parse_config
