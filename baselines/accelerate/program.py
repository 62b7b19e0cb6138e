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
from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta, Struct

from baselines.library_program import main
from tpi.decode import convert
from tpi.errors import ConfigError
from tpi.program.spec import NodeSpec

if TYPE_CHECKING:
    from baselines.accelerate.offload import OffloadedModel


class Options(Struct, frozen=True, forbid_unknown_fields=True):
    """See the module's docstring."""

    max_memory: Annotated[
        Annotated[int, Meta(ge=1, le=1 << 62)] | None, Meta(description="bytes >= 1 or null")
    ] = None


def load(spec: NodeSpec) -> "OffloadedModel":
    """Prepare the spec's folder; weights that are offloaded are not read."""
    options = convert(spec.options, Options, "spec options", ConfigError)
    # Only here: a wrong spec is refused before the library's seconds of import.
    from baselines.accelerate.offload import OffloadedModel, offload_folder
    from baselines.transformers.loading import load_model

    with offload_folder() as folder:
        model = load_model(
            spec.model_dir,
            spec.dtype,
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
