"""Loading and running a checkpoint with Transformers, offline and without surprises.

`load_model` is plain `from_pretrained` from a local folder: safetensors only, no code from the
checkpoint, errors mapped to ours. `greedy` is plain `generate`: fixed length, no stop token, and
none of the checkpoint's own sampling settings. `Generator` makes a baseline's model of the two.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load as safetensors_load
from safetensors.torch import load_file
from transformers.generation.streamers import BaseStreamer
from transformers.initialization import no_init_weights

from baselines.library_program import LibraryModel, refuse_prompt
from tpi.errors import WeightsError, map_errors

# The library is typed in part only; strict checking would refuse the rest.
_hf: Any = transformers
_OFFLINE: Mapping[str, Any] = {"local_files_only": True, "trust_remote_code": False}


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


class Generator(LibraryModel):
    """A causal language model of the library, as the contract wants it."""

    def __init__(self, model: Any, **facts: Any) -> None:
        self._model = model
        self.facts: Mapping[str, Any] = {
            "transformers": transformers.__version__,
            "parameter_bytes": model.get_memory_footprint(),
            "notes": [],
            **facts,
        }

    def generate(
        self, prompt_ids: Sequence[int], new_tokens: int, on_token: Callable[[int], None]
    ) -> None:
        """Call `on_token` with each new id as soon as it is known."""
        greedy(self._model, prompt_ids, new_tokens, on_token)


def load_model(folder: Path, dtype: str, threads: int, **options: Any) -> Any:
    """Read a checkpoint folder in `dtype`, that of the arithmetic; into memory, if nothing else.

    `options` are more arguments of `from_pretrained`.

    Raises:
        WeightsError: The folder is missing, damaged, or needs code or files of its own.
    """
    with _opening(folder, threads):
        model = _hf.AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            **_OFFLINE,
            **options,
        )
    return _ready(model)


def load_model_twice(folder: Path, dtype: str, threads: int, *, mmap: bool) -> Any:
    """As `load_model`, the way of `low_cpu_mem_usage=False`, the default up to Transformers 4.

    First the model with real tensors in `dtype`, then the whole state dict beside it, then a copy
    of each tensor: at the peak the weights are there twice. Transformers 5 takes that argument,
    drops it without a word and never loads so; this is the sequence that its guide to big models
    describes, of the library's own parts.

    Raises:
        WeightsError: As `load_model`, or names that are not the model's.
    """
    with _opening(folder, threads):
        config = _hf.AutoConfig.from_pretrained(folder, **_OFFLINE)
        with no_init_weights():
            model = _hf.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
        state: dict[str, torch.Tensor] = {}
        # The safetensors files as the checkpoint's index names them, if it has one.
        index, names = folder / "model.safetensors.index.json", ["model.safetensors"]
        if index.exists():
            names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        for file in (folder / name for name in sorted(set(names))):
            state.update(load_file(file) if mmap else safetensors_load(file.read_bytes()))
        found = model.load_state_dict(state, strict=False)
        # Without initialisation nothing is tied yet: the head of tied embeddings is in no file.
        model.tie_weights()
    missing = set(found.missing_keys) - set(model.all_tied_weights_keys)
    if missing or found.unexpected_keys:
        raise WeightsError(
            f"checkpoint {folder}: tensors missing: {sorted(missing)}, "
            f"not the model's: {found.unexpected_keys}; use an unaltered checkpoint"
        )
    return _ready(model)


@contextmanager
def _opening(folder: Path, threads: int) -> Iterator[None]:
    """What every way of loading has in common; the library's errors become ours."""
    torch.set_num_threads(threads)
    _hf.utils.logging.disable_progress_bar()
    if not folder.is_dir():
        # Otherwise Transformers takes the path for the name of a model on a server.
        raise WeightsError(f"checkpoint {folder}: no such folder")
    reasons = {OSError: WeightsError, ValueError: WeightsError, RuntimeError: WeightsError}
    with map_errors(reasons, f"checkpoint {folder}"), _memory_apart():
        yield


@contextmanager
def _memory_apart() -> Iterator[None]:
    """Torch says "no memory" with a RuntimeError, which would pass for a damaged file."""
    try:
        yield
    except RuntimeError as exc:
        if "allocate memory" in str(exc):
            raise MemoryError(str(exc)[:200]) from exc
        raise


def _ready(model: Any) -> Any:
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
    """Refuse a prompt that does not fit a model of the library."""
    config = model.config
    refuse_prompt(prompt_ids, new_tokens, config.vocab_size, config.max_position_embeddings)
