"""Tiny Hugging Face checkpoints that show mistakes, and what Transformers makes of them.

Default initialisation hides bugs: with a standard deviation of 0.02 a few tokens repeat for ever
and a dropped block changes nothing. Here matrices are N(0, 0.08) and norms and biases perturbed,
so that nearly every token differs and every part of the model matters. At a width below 256 such
a model repeats itself: with 64 came 1 to 15 different tokens of 32, with 256 at least 20.
"""

import atexit
import functools
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.utils import logging as transformers_logging

transformers_logging.disable_progress_bar()

VOCAB_SIZE = 512
PROMPT_IDS = tuple((7 * i * i + 3 * i + 5) % VOCAB_SIZE for i in range(24))
NEW_TOKENS = 32

_SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE, "hidden_size": 256, "intermediate_size": 352, "num_hidden_layers": 3,
    "num_attention_heads": 8, "num_key_value_heads": 8, "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5, "bos_token_id": 1, "eos_token_id": 2, "use_cache": True,
}  # fmt: skip
_LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
}  # fmt: skip
_LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.5}


@dataclass(frozen=True)
class Kind:
    """How one kind of checkpoint differs from the plain one."""

    config_class: type = LlamaConfig
    model_class: type = LlamaForCausalLM
    changes: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    max_shard_size: str = "1GB"


_GQA = {"num_key_value_heads": 2}
KINDS = {
    "mha": Kind(),
    "gqa2": Kind(changes=_GQA),
    # A head size that is not width / heads, and an FFN that nothing divides.
    "odd": Kind(
        changes=_GQA | {"num_attention_heads": 4, "head_dim": 10, "intermediate_size": 351}
    ),
    "tied": Kind(changes=_GQA | {"tie_word_embeddings": True}),
    "llama3_rope": Kind(changes=_GQA | {"rope_parameters": _LLAMA3}),
    "linear_rope": Kind(changes={"rope_parameters": _LINEAR}),
    "bias": Kind(Qwen2Config, Qwen2ForCausalLM, _GQA),
    "llama_bias": Kind(changes=_GQA | {"attention_bias": True, "mlp_bias": True}),
    "qk_norm": Kind(Qwen3Config, Qwen3ForCausalLM, _GQA | {"head_dim": 16}),
    "qwen3_bias": Kind(Qwen3Config, Qwen3ForCausalLM, {"attention_bias": True, "head_dim": 8}),
    "mistral": Kind(MistralConfig, MistralForCausalLM, _GQA | {"sliding_window": None}),
    "multi_file": Kind(max_shard_size="1MB"),
    "bfloat16": Kind(changes=_GQA, dtype=torch.bfloat16),
    "float16": Kind(changes=_GQA, dtype=torch.float16),
}


def make_checkpoint(folder: Path, kind: str, *, seed: int = 0, **changes: Any) -> Path:
    """Write a Hugging Face folder of one of `KINDS`; keyword arguments change its config."""
    what = KINDS[kind]
    config = what.config_class(**(_SHAPE | what.changes | changes))
    config.dtype = what.dtype
    model = what.model_class(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                parameter.copy_(1 + 0.1 * noise)
            else:
                parameter.copy_(0.08 * noise if parameter.ndim == 2 else 0.1 * noise)
    model.to(what.dtype)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder, max_shard_size=what.max_shard_size)
    return folder


@functools.cache
def shared_checkpoint(kind: str) -> Path:
    """One checkpoint of a kind for the whole test session; nobody may change it."""
    folder = Path(tempfile.mkdtemp(prefix=f"tpi-test-{kind}-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return make_checkpoint(folder, kind)


@functools.lru_cache(maxsize=4)
def reference_model(folder: Path) -> Any:
    """The checkpoint in Transformers, float32, one thread."""
    torch.set_num_threads(1)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval()


def reference_logits(folder: Path, ids: list[int] | tuple[int, ...]) -> torch.Tensor:
    """Logits of every position of one sequence. Shapes: (S, V) float32."""
    with torch.inference_mode():
        logits: torch.Tensor = reference_model(folder)(torch.tensor([list(ids)])).logits
    return logits[0]


@functools.cache
def reference_tokens(
    folder: Path, prompt_ids: tuple[int, ...] = PROMPT_IDS, new_tokens: int = NEW_TOKENS
) -> tuple[int, ...]:
    """Greedy tokens, exactly `new_tokens` of them whatever the end token is."""
    model = reference_model(folder)
    tokens: list[int] = []
    ids, cache = torch.tensor([list(prompt_ids)]), None
    with torch.inference_mode():
        for _ in range(new_tokens):
            step = model(ids, past_key_values=cache, use_cache=True)
            cache = step.past_key_values
            ids = step.logits[:, -1:].argmax(-1)
            tokens.append(int(ids))
    return tuple(tokens)
