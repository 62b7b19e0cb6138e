"""What the two Accelerate baselines share: offloaded weights, and how long each layer waits.

Accelerate brings the weights of a module in before its forward pass and drops them after it, by
hooks; `HookClock` times these, as spans of the block that the module belongs to. Its reads go
through the page cache, by memory maps: what the hooks convert or copy they read themselves, but
weights that stay views of a file come in during the multiplication, where nobody can tell reading
from computing.
"""

import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

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


class HookClock:
    """Adds up the seconds that a model's offloading hooks take: `wait_weights` of its tracer."""

    def __init__(self, model: Any) -> None:
        self.tracer = Tracer()
        self.num_hooks = 0
        for name, module in model.named_modules():
            for hook in _offloading(getattr(module, "_hf_hook", None)):
                hook.pre_forward = self._timed(hook.pre_forward, block_of(name))
                hook.post_forward = self._timed(hook.post_forward, block_of(name))
                self.num_hooks += 1

    def _timed(self, call: Callable[..., Any], block: tuple[str, int]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.tracer.span("wait_weights", *block):
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
        clock = HookClock(model)
        self.tracer = clock.tracer
        self._folder = folder
        super().__init__(
            model,
            accelerate=accelerate.__version__,
            offloaded_modules=clock.num_hooks,
            notes=[_READS if clock.num_hooks else _FITS, *notes],
        )

    def __enter__(self) -> Self:
        return self

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
