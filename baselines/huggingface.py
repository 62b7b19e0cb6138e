"""Loading and running a checkpoint with Transformers, offline and without surprises.

`load_model` is plain `from_pretrained` from a local folder: safetensors only, no code from the
checkpoint, errors mapped to ours. `greedy` is plain `generate`: fixed length, no stop token, and
none of the checkpoint's own sampling settings.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.generation.streamers import BaseStreamer

from tpi.errors import ConfigError, WeightsError, map_errors

# The library is typed in part only; strict checking would refuse the rest.
_hf: Any = transformers


class TokenStream(BaseStreamer):
    """Hands on each new token as `generate` makes it; the prompt comes first and is skipped."""

    def __init__(self, on_token: Callable[[int], None]) -> None:
        self._on_token = on_token
        self._is_prompt = True

    def put(self, value: torch.Tensor) -> None:
        """Take what `generate` pushes: the prompt's ids, then one id at a time."""
        if not self._is_prompt:
            self._on_token(int(value.item()))
        self._is_prompt = False

    def end(self) -> None:
        """Nothing is held back, so nothing is left."""


def load_model(folder: Path, dtype: str, threads: int) -> Any:
    """Read a checkpoint folder into memory in `dtype` ("float32", "bfloat16").

    Raises:
        WeightsError: The folder is missing, damaged, or needs code or files of its own.
    """
    torch.set_num_threads(threads)
    _hf.utils.logging.disable_progress_bar()
    if not folder.is_dir():
        # Otherwise Transformers takes the path for the name of a model on a server.
        raise WeightsError(f"checkpoint {folder}: no such folder")
    reasons = {OSError: WeightsError, ValueError: WeightsError, RuntimeError: WeightsError}
    with map_errors(reasons, f"checkpoint {folder}"):
        model = _hf.AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=getattr(torch, dtype),
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
        )
    # The checkpoint's own settings would fill every field that a request leaves open.
    model.generation_config = _hf.GenerationConfig()
    return model.eval()


def greedy(
    model: Any, prompt_ids: Sequence[int], new_tokens: int, on_token: Callable[[int], None]
) -> None:
    """Make exactly `new_tokens` tokens, each the one with the largest logit.

    Raises:
        ConfigError: An id outside the vocabulary, or more tokens than the model has positions.
    """
    check_prompt(model, prompt_ids, new_tokens)
    ids_BS = torch.tensor([list(prompt_ids)])
    model.generate(
        ids_BS,
        attention_mask=torch.ones_like(ids_BS),
        generation_config=_hf.GenerationConfig(
            do_sample=False,
            min_new_tokens=new_tokens,
            max_new_tokens=new_tokens,
            eos_token_id=None,
            pad_token_id=0,
            use_cache=True,
        ),
        streamer=TokenStream(on_token),
    )


def check_prompt(model: Any, prompt_ids: Sequence[int], new_tokens: int) -> None:
    """Refuse what would fail deep inside the model, or silently run past its positions."""
    vocab_size, positions = model.config.vocab_size, model.config.max_position_embeddings
    if not prompt_ids:
        raise ConfigError("the prompt is empty")
    if max(prompt_ids) >= vocab_size:
        raise ConfigError(f"token id {max(prompt_ids)}, the vocabulary has {vocab_size}")
    if len(prompt_ids) + new_tokens > positions:
        raise ConfigError(
            f"{len(prompt_ids)} + {new_tokens} tokens, the model has {positions} positions"
        )
