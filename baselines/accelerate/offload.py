"""What the two Accelerate baselines share: offloaded weights, and how long each layer waits.

Accelerate's hooks bring the weights of a module in before its forward pass and drop them after it.
`_time_hooks` times them, as spans of the block that the module belongs to. Reads go through the
page cache, by memory maps. The hooks read what they convert or copy. Weights that stay views of a
file are read during the multiplication, where reading cannot be told from computing.
"""

import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import accelerate
from accelerate.hooks import AlignDevicesHook, SequentialHook

from baselines.transformers.loading import Generator
from tpi.errors import ResourceError, map_errors
from tpi.trace import Tracer

OffloadFolder = tempfile.TemporaryDirectory[str]

_READS = "reads through the page cache: what is cached costs no disk read and counts as none"
_FITS = "nothing is offloaded: max_memory holds the whole model and room for its largest layer"


# Names of modules in Transformers' Llama-like models.
_LAYER = re.compile(r"model\.layers\.(\d+)\.(\w+)")
_FFN = ("mlp", "post_attention_layernorm")


def block_of(module: str) -> tuple[str, int]:
    """Kind and index of the block that a module belongs to, by its name; ("", 0) if of none."""
    if match := _LAYER.match(module):
        return "ffn" if match[2] in _FFN else "attn", int(match[1])
    if module == "model.embed_tokens":
        return "embed", 0
    return ("head", 0) if module in ("lm_head", "model.norm") else ("", 0)


def _time_hooks(model: Any, tracer: Tracer) -> int:
    """Trace a model's offloading hooks as `wait_weights` of their blocks; returns how many."""
    num_hooks = 0
    for name, module in model.named_modules():
        for hook in _offloading(getattr(module, "_hf_hook", None)):
            for part in ("pre_forward", "post_forward"):
                setattr(hook, part, _timed(getattr(hook, part), tracer, block_of(name)))
            num_hooks += 1
    return num_hooks


def _timed(call: Callable[..., Any], tracer: Tracer, block: tuple[str, int]) -> Callable[..., Any]:
    def timed(*args: Any, **kwargs: Any) -> Any:
        with tracer.span("wait_weights", *block):
            return call(*args, **kwargs)

    return timed


def _offloading(hook: Any) -> Iterator[Any]:
    """The hooks of a module that move weights; hooks of different modules never nest."""
    if isinstance(hook, SequentialHook):
        for part in hook.hooks:
            yield from _offloading(part)
    elif isinstance(hook, AlignDevicesHook) and hook.offload:
        yield hook


class OffloadedModel(Generator):
    """A model whose weights live on disk; its offload folder goes when it is left."""

    def __init__(self, model: Any, folder: OffloadFolder, *notes: str) -> None:
        self.tracer = Tracer()
        num_hooks = _time_hooks(model, self.tracer)
        self._folder = folder
        super().__init__(
            model,
            accelerate=accelerate.__version__,
            offloaded_modules=num_hooks,
            notes=[_READS if num_hooks else _FITS, *notes],
        )

    def __exit__(self, *exc_info: object) -> None:
        self._folder.cleanup()


@contextmanager
def offload_folder() -> Iterator[OffloadFolder]:
    """A new folder in the working directory; it stays, for the model, unless the body fails."""
    with map_errors({OSError: ResourceError}, "no offload folder in the working directory"):
        folder = tempfile.TemporaryDirectory(prefix="offload-", dir=Path.cwd())
    try:
        yield folder
    except BaseException:
        folder.cleanup()
        raise
