"""What the two Accelerate baselines share: offloaded weights, and how long each layer waits.

Accelerate brings the weights of a module in before its forward pass and drops them after it, by
hooks; `HookClock` times these. Its reads go through the page cache, by memory maps: what the hooks
convert or copy they read themselves, but weights that stay views of a file come in during the
multiplication, where nobody can tell reading from computing.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import accelerate
from accelerate.hooks import AlignDevicesHook, SequentialHook

from baselines.huggingface import Generator
from baselines.model import Spent
from tpi.errors import ResourceError, map_errors

OffloadFolder = tempfile.TemporaryDirectory[str]

_READS = "reads through the page cache: what is cached costs no disk read and counts as none"
_FITS = "nothing is offloaded: max_memory holds the whole model and room for its largest layer"


class HookClock:
    """Adds up the seconds that a model's offloading hooks take."""

    def __init__(self, model: Any) -> None:
        self.seconds = 0.0
        self.num_hooks = 0
        for module in model.modules():
            for hook in _offloading(getattr(module, "_hf_hook", None)):
                hook.pre_forward = self._timed(hook.pre_forward)
                hook.post_forward = self._timed(hook.post_forward)
                self.num_hooks += 1

    def _timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - start

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
        self._clock = HookClock(model)
        self._folder = folder
        super().__init__(
            model,
            accelerate=accelerate.__version__,
            offloaded_modules=self._clock.num_hooks,
            notes=[_READS if self._clock.num_hooks else _FITS, *notes],
        )

    def spent(self) -> Spent:
        """Seconds in the hooks so far; nothing is sent."""
        return Spent(wait_weights_s=self._clock.seconds)

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
