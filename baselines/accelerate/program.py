"""Accelerate's disk offload on one device: `python -m baselines.accelerate.program SPEC`.

As its documentation advises today: `from_pretrained` with a `device_map`, which never loads the
whole model. What is offloaded stays in the checkpoint's own safetensors files; the offload folder
gets only what must be stored anew (nothing, for the models here). The weights of a layer come in,
one tensor at a time, when its forward pass begins, and are converted if the dtype of the
arithmetic is another. Option:

    max_memory   null: everything is offloaded (`device_map={"": "disk"}`). Bytes:
                 `device_map="auto"` puts into memory what fits, less room for the largest layer.
"""

import sys
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from msgspec import Meta

from baselines.library_program import main
from baselines.options import SystemOptions
from baselines.validators import check_size
from tpi.decode import NumBytes
from tpi.program.spec import NodeSpec, own_options

if TYPE_CHECKING:
    from baselines.accelerate.offload import OffloadedModel


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


def load(spec: NodeSpec) -> "OffloadedModel":
    """Prepare the spec's folder; weights that are offloaded are not read."""
    options = own_options(spec, AccelerateOptions)
    # Only here: a wrong spec is refused before the library's seconds of import.
    from baselines.accelerate.offload import OffloadedModel, offload_folder
    from baselines.transformers.loading import load_model

    with offload_folder() as folder:
        model = load_model(
            spec.model_dir,
            spec.compute.dtype,
            spec.threads,
            offload_folder=folder.name,
            **_placement(options.max_memory),
        )
        return OffloadedModel(model, folder)


def _placement(max_memory: int | None) -> dict[str, Any]:
    if max_memory is None:
        return {"device_map": {"": "disk"}}
    return {"device_map": "auto", "max_memory": {"cpu": max_memory}}


if __name__ == "__main__":
    sys.exit(main(load))
