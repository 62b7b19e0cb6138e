"""llama.cpp on one device: `python -m baselines.llamacpp.program SPEC`.

It calls the library through `llama_cpp`'s C interface, on a GGUF file of the same weights. Settings
are its defaults, with these exceptions: the spec gives threads and context; flash attention is off,
as in `llama_cpp.Llama`; in float32 the cache is float32, since a float16 cache is not float32
arithmetic. The first largest logit is the next token, as in Transformers.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from baselines.library_program import LibraryModel, main, refuse_prompt
from baselines.llamacpp.gguf_layout import MODEL_FILE
from baselines.llamacpp.library import library_log, set_fields
from baselines.llamacpp.options import LlamacppOptions
from tpi.errors import ResourceError, TpiError, WeightsError
from tpi.program.spec import NodeSpec, own_options


class LlamaCppModel(LibraryModel):
    """A model of the library with one context, which holds one sequence at a time.

    `threads` serve the prompt and single tokens alike. `max_tokens` is the largest prompt + new
    tokens of any request. Without `mmap` the file is read into memory of the process.

    Raises:
        WeightsError: The library cannot use the file.
        ResourceError: No memory for the weights or the cache.
    """

    def __init__(
        self, path: Path, *, file_type: str, threads: int, max_tokens: int, mmap: bool = True
    ) -> None:
        # Only here: a wrong spec is refused before the library is there.
        import llama_cpp

        self._lib: Any = llama_cpp
        self._log = library_log()
        llama_cpp.llama_backend_init()
        self._model = self._load(path, mmap)
        is_plain_float32 = file_type == "float32"
        cache = llama_cpp.GGML_TYPE_F32 if is_plain_float32 else llama_cpp.GGML_TYPE_F16
        self._context = self._make_context(path, cache, threads, max_tokens)
        vocab = llama_cpp.llama_model_get_vocab(self._model)
        self._vocab_size = int(llama_cpp.llama_vocab_n_tokens(vocab))
        self._positions = int(llama_cpp.llama_model_n_ctx_train(self._model))
        self.facts: Mapping[str, Any] = {
            "llama_cpp": llama_cpp.__version__,
            "file_type": file_type,
            "kv_cache": "float32" if is_plain_float32 else "float16",
            "parameter_bytes": int(llama_cpp.llama_model_size(self._model)),
            "notes": [],
        }

    def generate(
        self, prompt_ids: Sequence[int], new_tokens: int, on_token: Callable[[int], None]
    ) -> None:
        """Call `on_token` with each new id as soon as it is known.

        Raises:
            ConfigError: An id outside the vocabulary, or more tokens than the model has positions.
        """
        refuse_prompt(prompt_ids, new_tokens, self._vocab_size, self._positions)
        self._log.forget()
        memory = self._lib.llama_get_memory(self._context)
        # Freed, not set to zero: that took 1.4 ms of the first token (1.1 B, 2048 positions).
        self._lib.llama_memory_clear(memory, False)
        ids: Sequence[int] = prompt_ids
        for _ in range(new_tokens):
            token = self._step(ids)
            on_token(token)
            ids = (token,)

    def close(self) -> None:
        """Give the library's memory back; for those who outlive the model."""
        self._lib.llama_free(self._context)
        self._lib.llama_model_free(self._model)

    def _load(self, path: Path, mmap: bool) -> Any:
        lib = self._lib
        if not path.is_file():
            raise WeightsError(
                f"{path}: no such file; it is made by baselines.llamacpp.gguf_file.make_gguf"
            )
        params = lib.llama_model_default_params()
        mode = lib.LLAMA_LOAD_MODE_MMAP if mmap else lib.LLAMA_LOAD_MODE_NONE
        set_fields(params, load_mode=mode)
        self._log.forget()
        model = lib.llama_model_load_from_file(str(path).encode(), params)
        if not model:
            cause = self._log.first_error
            # The library has one status for all errors; only its text names a lack of memory.
            error = ResourceError if "allocate" in cause else WeightsError
            raise error(f"{path}: llama.cpp cannot load it: {cause}")
        return model

    def _make_context(self, path: Path, cache: int, threads: int, max_tokens: int) -> Any:
        lib = self._lib
        params = lib.llama_context_default_params()
        set_fields(
            params,
            n_ctx=max_tokens,
            n_batch=max_tokens,
            n_threads=threads,
            n_threads_batch=threads,
            type_k=cache,
            type_v=cache,
            flash_attn_type=lib.LLAMA_FLASH_ATTN_TYPE_DISABLED,
        )
        self._log.forget()
        context = lib.llama_init_from_model(self._model, params)
        if not context:
            lib.llama_model_free(self._model)
            raise ResourceError(
                f"{path}: no context of {max_tokens} tokens: {self._log.first_error}"
            )
        return context

    def _step(self, ids: Sequence[int]) -> int:
        """Take ids in after those that are cached; the next one."""
        lib = self._lib
        array = (lib.llama_token * len(ids))(*ids)
        status = lib.llama_decode(self._context, lib.llama_batch_get_one(array, len(ids)))
        if status:
            raise TpiError(f"llama.cpp: decoding failed, status {status}: {self._log.first_error}")
        logits = lib.llama_get_logits_ith(self._context, -1)
        return int(np.ctypeslib.as_array(logits, (self._vocab_size,)).argmax())


def load(spec: NodeSpec) -> LlamaCppModel:
    """Load `model.gguf` of the spec's folder."""
    options = own_options(spec, LlamacppOptions)
    return LlamaCppModel(
        spec.model_dir / MODEL_FILE,
        file_type=options.file_type(spec.compute.dtype),
        threads=spec.threads,
        max_tokens=spec.compute.max_tokens,
        mmap=options.mmap,
    )


if __name__ == "__main__":
    sys.exit(main(load))
