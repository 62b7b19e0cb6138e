"""Accelerate's disk offload on one device: `python -m baselines.accelerate.program SPEC`.

`accelerate` is as its documentation advises today: `from_pretrained` with a `device_map`, which
never loads the whole model. What is offloaded stays in the checkpoint's own safetensors files; the
offload folder gets only what must be stored anew (nothing, for the models here). The weights of a
layer come in, one tensor at a time, when its forward pass begins, and are converted if the dtype of
the arithmetic is another. Option:

    max_memory   null: everything is offloaded (`device_map={"": "disk"}`). Bytes:
                 `device_map="auto"` puts into memory what fits, less room for the largest layer.

`accelerate-2024` is as the paper describes it: "It still requires loading full weights before
splitting and offloading them to disk". The model is loaded whole, in the dtype of the arithmetic,
as Transformers did by default then. `accelerate.disk_offload` writes each tensor to a file
of its own, and every layer reads its weights, blocking, when its forward pass begins. Peak memory
is at least all weights. Which call and version the paper used is not known; this is the documented
one that offloads a loaded model. It has no options.
"""

import sys
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from msgspec import Meta

from baselines.library_program import main
from baselines.options import SystemOptions
from baselines.validators import check_size
from tpi.decode import NumBytes
from tpi.errors import ResourceError, map_errors
from tpi.program.spec import NodeSpec, own_options

if TYPE_CHECKING:
    from baselines.accelerate.offload import OffloadedModel


_NOTE_2024 = "the whole model was loaded before it was offloaded"


class AccelerateOptions(SystemOptions, frozen=True, kw_only=True):
    """See the module's docstring."""

    told: ClassVar = ("max_memory",)
    shown: ClassVar = ("max_memory",)
    about: ClassVar = {"max_memory": "for weights, as 2GiB; null offloads all to disk"}
    max_memory: Annotated[NumBytes | None, Meta(description="bytes >= 1 or null")] = None

    def __post_init__(self) -> None:
        if self.max_memory is not None:
            name = "systems.accelerate.max_memory"
            self._set("max_memory", check_size(name, self.max_memory))


class Accelerate2024Options(SystemOptions, frozen=True, kw_only=True):
    """None."""


def load(spec: NodeSpec) -> "OffloadedModel":
    """Prepare the spec's folder; today, weights that are offloaded are not read."""
    if spec.system == "accelerate-2024":
        return _load_2024(spec)
    options = own_options(spec, AccelerateOptions)
    placement: dict[str, Any] = {"device_map": {"": "disk"}}
    if options.max_memory is not None:
        placement = {"device_map": "auto", "max_memory": {"cpu": options.max_memory}}
    # Only here: a wrong spec is refused before the library's seconds of import.
    from baselines.accelerate.offload import OffloadedModel, offload_folder
    from baselines.transformers.loading import load_model

    with offload_folder() as folder:
        model = load_model(
            spec.model_dir,
            spec.compute.dtype,
            spec.threads,
            offload_folder=folder.name,
            **placement,
        )
        return OffloadedModel(model, folder)


def _load_2024(spec: NodeSpec) -> "OffloadedModel":
    own_options(spec, Accelerate2024Options)
    from accelerate import disk_offload

    from baselines.accelerate.offload import OffloadedModel, offload_folder
    from baselines.transformers.loading import load_model_twice

    model = load_model_twice(spec.model_dir, spec.compute.dtype, spec.threads, mmap=True)
    with offload_folder() as folder:
        with map_errors({OSError: ResourceError}, f"cannot offload to {folder.name}"):
            model = disk_offload(model, folder.name)
        return OffloadedModel(model, folder, _NOTE_2024)


if __name__ == "__main__":
    sys.exit(main(load))
