"""What a model is: the numbers of a Hugging Face `config.json`, checked and in our own words.

`parse_config` turns the keys of a Llama-family `config.json` (the spelling of Transformers 5 and
the older one) into a `ModelConfig` and refuses what the engine would compute differently from
Transformers. `config_to_json` writes the same form back, so checkpoints, presets and shard
manifests have one parser. Nothing in a checkpoint's folder is executed: `auto_map` is ignored.
"""

import difflib
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct, UnsetType

from tpi.decode import Text, convert, shown
from tpi.errors import ConfigError
from tpi.files import parse_json, read_small_file

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
_ADVICE = "use the config.json that belongs to this model"
# Far above any known model (405B: 126 layers, width 16384; vocabularies of 262144) and low
# enough that no product of two of them can overflow or exhaust memory by itself.
_MAX_VOCAB = 1 << 22
_Heads = Annotated[int, Meta(ge=1, le=2048)]
_Positions = Annotated[int, Meta(ge=1, le=1 << 26)]
_Theta = Annotated[float, Meta(ge=1.0, le=1e12)]
_Factor = Annotated[float, Meta(ge=1e-3, le=1e6)]
_Share = Annotated[float, Meta(ge=0.0, le=1.0)]
_TokenId = Annotated[int, Meta(ge=0, lt=_MAX_VOCAB)]
_TokenIds = Annotated[
    _TokenId | list[_TokenId] | None, Meta(description="a token id or a list of token ids")
]


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


class _RopeKeys(Struct, frozen=True):
    """`rope_scaling` or `rope_parameters` of a `config.json`."""

    rope_type: Text | None = None
    type: Text | None = None
    rope_theta: _Theta | None = None
    factor: _Factor | None = None
    low_freq_factor: _Factor | None = None
    high_freq_factor: _Factor | None = None
    original_max_position_embeddings: _Positions | None = None
    partial_rotary_factor: _Share | None = None


class _ConfigKeys(Struct, frozen=True):
    """The keys of a `config.json` that are used. Null is missing, as it is for Transformers."""

    hidden_size: Annotated[int, Meta(ge=1, le=1 << 17)]
    intermediate_size: Annotated[int, Meta(ge=1, le=1 << 20)]
    num_hidden_layers: Annotated[int, Meta(ge=1, le=1024)]
    num_attention_heads: _Heads
    vocab_size: Annotated[int, Meta(ge=1, le=_MAX_VOCAB)]
    max_position_embeddings: _Positions
    rms_norm_eps: Annotated[float, Meta(ge=0.0, le=0.1)]
    architectures: list[str] | None = None
    model_type: Text | None = None
    # Of these two, missing and null differ.
    num_key_value_heads: _Heads | UnsetType | None = UNSET
    sliding_window: _Positions | UnsetType | None = UNSET
    use_sliding_window: bool | None = None
    layer_types: list[str] | None = None
    head_dim: Annotated[int, Meta(ge=1, le=2048)] | None = None
    hidden_act: Text | None = None
    quantization_config: Any = None
    attention_bias: bool | None = None
    mlp_bias: bool | None = None
    tie_word_embeddings: bool | None = None
    dtype: Text | None = None
    torch_dtype: Text | None = None
    eos_token_id: _TokenIds = None
    bos_token_id: _TokenIds = None
    rope_theta: _Theta | None = None
    rope_scaling: _RopeKeys | None = None
    rope_parameters: _RopeKeys | None = None
    original_max_position_embeddings: _Positions | None = None
    partial_rotary_factor: _Share | None = None


def parse_config(raw: object, where: str) -> ModelConfig:
    """Check the content of a `config.json` and put it into our words; `where` opens errors.

    Raises:
        ConfigError: A key is missing, of the wrong type, out of bounds, or asks for something
            that is not implemented (another architecture, rope type, activation, sliding
            window, quantised weights).
    """
    keys = convert(raw, _ConfigKeys, where, ConfigError, _ADVICE)
    try:
        return _model_config(keys)
    except _Refusal as exc:
        raise ConfigError(f"{where}: {exc}") from exc


class _Refusal(Exception):
    """A key that does not fit the others, or asks for what is not implemented."""

    def __init__(self, key: str, expected: str, got: object, advice: str = _ADVICE) -> None:
        super().__init__(f"{key} must be {expected}, got {shown(got)}; {advice}")


def _model_config(keys: _ConfigKeys) -> ModelConfig:
    architecture = _architecture(keys)
    _refuse_unsupported(keys, architecture)
    theta, rope = _rope(keys)
    attention_bias = bool(keys.attention_bias) and architecture in ("llama", "qwen3")
    bos = _token_ids(keys.bos_token_id)
    return ModelConfig(
        architecture=architecture,
        num_layers=keys.num_hidden_layers,
        hidden_size=keys.hidden_size,
        num_heads=keys.num_attention_heads,
        num_kv_heads=_num_kv_heads(keys, architecture),
        head_size=_head_size(keys, architecture),
        ffn_size=keys.intermediate_size,
        vocab_size=keys.vocab_size,
        max_positions=keys.max_position_embeddings,
        rms_eps=keys.rms_norm_eps,
        rope_theta=theta,
        rope=rope,
        qkv_bias=attention_bias or architecture == "qwen2",
        out_bias=attention_bias,
        ffn_bias=bool(keys.mlp_bias) and architecture == "llama",
        qk_norm=architecture == "qwen3",
        tied_embeddings=bool(keys.tie_word_embeddings),
        dtype=_dtype(keys),
        eos_token_ids=_token_ids(keys.eos_token_id),
        bos_token_id=bos[0] if bos else None,
    )


def _token_ids(ids: _TokenIds) -> tuple[int, ...]:
    if ids is None:
        return ()
    return (ids,) if isinstance(ids, int) else tuple(ids)


def _architecture(keys: _ConfigKeys) -> str:
    supported = ", ".join(_ARCHITECTURES)
    advice = f"models that run are {supported}"
    named, names = keys.model_type, keys.architectures
    if named is not None and named not in _ARCHITECTURES.values():
        known = ", ".join(_ARCHITECTURES.values())
        raise _Refusal("model_type", f"one of {known}", named, advice)
    if names is None and named is not None:
        return named
    if names is None or len(names) != 1:
        raise _Refusal("architectures", "a list with one class name", names, advice)
    if names[0] not in _ARCHITECTURES:
        one_of = f"a list with one of {supported}"
        raise _Refusal("architectures", one_of, names, "other models do not run")
    if named not in (None, _ARCHITECTURES[names[0]]):
        raise _Refusal("model_type", f"{_ARCHITECTURES[names[0]]!r} for {names[0]}", named)
    return _ARCHITECTURES[names[0]]


def _refuse_unsupported(keys: _ConfigKeys, architecture: str) -> None:
    if keys.quantization_config is not None:
        raise _Refusal(
            "quantization_config", "null (no quantisation)", keys.quantization_config,
            "use the float32, float16 or bfloat16 model",
        )  # fmt: skip
    if keys.hidden_act not in (None, "silu", "swish"):
        raise _Refusal("hidden_act", "'silu'", keys.hidden_act, "other activations do not run")
    advice = "only models with full attention run"
    if architecture == "mistral":
        # Transformers takes 4096 where Mistral's key is missing; null means full attention.
        window = 4096 if keys.sliding_window is UNSET else keys.sliding_window
        if window is not None and window < keys.max_position_embeddings:
            expected = f"null, or at least {keys.max_position_embeddings}"
            raise _Refusal("sliding_window", expected, window, advice)
    elif keys.use_sliding_window:
        raise _Refusal("use_sliding_window", "false", True, advice)
    if any(kind != "full_attention" for kind in keys.layer_types or ()):
        expected = "'full_attention' in every layer"
        raise _Refusal("layer_types", expected, keys.layer_types, advice)


def _num_kv_heads(keys: _ConfigKeys, architecture: str) -> int:
    num_heads, num_kv_heads = keys.num_attention_heads, keys.num_key_value_heads
    # Only Llama's configs may leave the key out; the defaults of the others are not the heads.
    if num_kv_heads is UNSET and architecture != "llama":
        raise _Refusal("num_key_value_heads", f"a divisor of {num_heads}", None)
    num_kv_heads = num_kv_heads or num_heads
    if num_heads % num_kv_heads:
        expected = f"a divisor of num_attention_heads ({num_heads})"
        raise _Refusal("num_key_value_heads", expected, num_kv_heads)
    return num_kv_heads


def _head_size(keys: _ConfigKeys, architecture: str) -> int:
    head_size, num_heads = keys.head_dim, keys.num_attention_heads
    if head_size is None and architecture == "qwen3":
        raise _Refusal("head_dim", "an even number", None)
    if head_size is None and keys.hidden_size % num_heads:
        expected = f"a multiple of num_attention_heads ({num_heads})"
        raise _Refusal("hidden_size", expected, keys.hidden_size, "or give head_dim")
    head_size = head_size or keys.hidden_size // num_heads
    if head_size % 2:
        expected = "an even number, since rotary embedding turns pairs"
        raise _Refusal("head_dim", expected, head_size)
    return head_size


def _dtype(keys: _ConfigKeys) -> str:
    key, given = ("dtype", keys.dtype) if keys.dtype else ("torch_dtype", keys.torch_dtype)
    name = (given or "float32").removeprefix("torch.")
    if name not in DTYPES:
        raise _Refusal(key, "one of " + ", ".join(DTYPES), given)
    return name


def _rope(keys: _ConfigKeys) -> tuple[float, RopeScaling]:
    """Base and scaling; `rope_scaling` wins over `rope_parameters`, as in Transformers."""
    empty = _RopeKeys()
    scaled = keys.rope_scaling or empty
    name = "rope_parameters" if scaled == empty else "rope_scaling"
    rope = (keys.rope_parameters or empty) if scaled == empty else scaled
    theta = rope.rope_theta or keys.rope_theta or 1e4
    for prefix, share in ("", keys.partial_rotary_factor), (f"{name}.", rope.partial_rotary_factor):
        if share not in (None, 1.0):
            advice = "partly rotated heads do not run"
            raise _Refusal(f"{prefix}partial_rotary_factor", "1", share, advice)
    kind = rope.rope_type or rope.type or "default"
    if kind == "default":
        return theta, RopeScaling()
    if kind not in ("linear", "llama3"):
        key = f"{name}.rope_type" if rope.rope_type else f"{name}.type"
        expected = "'default', 'linear' or 'llama3'"
        raise _Refusal(key, expected, kind, "other rope types do not run")

    def needed(key: str) -> float:
        value: float | None = getattr(rope, key)
        if value is None:
            raise _Refusal(f"{name}.{key}", "a number from 0.001 to 1e+06", None)
        return value

    factor = needed("factor")
    if kind == "linear":
        return theta, RopeScaling("linear", factor)
    low, high = needed("low_freq_factor"), needed("high_freq_factor")
    if low >= high:
        expected = f"more than low_freq_factor ({low:g})"
        raise _Refusal(f"{name}.high_freq_factor", expected, high)
    original = (  # outside wins, too
        keys.original_max_position_embeddings
        or rope.original_max_position_embeddings
        or keys.max_position_embeddings
    )
    return theta, RopeScaling("llama3", factor, low, high, original)


def load_config(folder: Path) -> ModelConfig:
    """Read `config.json` of a checkpoint folder.

    Raises:
        ConfigError: It is missing, cannot be read, or describes a model that does not run.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: expected a folder with a {CONFIG_FILE}, got no such folder")
    path = folder / CONFIG_FILE
    data = read_small_file(path, MAX_CONFIG_BYTES, ConfigError, follow=True)
    return parse_config(parse_json(data, str(path), ConfigError), str(path))


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
    where = f"preset {name}"
    return parse_config(parse_json(data, where, ConfigError), where)


def config_to_json(config: ModelConfig) -> dict[str, object]:
    """A `config.json` in the spelling of Transformers 5; `parse_config` is its inverse."""
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
