"""Accelerate as the paper describes it: `python -m baselines.accelerate.program_2024 SPEC`.

"It still requires loading full weights before splitting and offloading them to disk": the model is
loaded whole, in the dtype of the arithmetic and the way that was Transformers' default then, and
`accelerate.disk_offload` writes each tensor to a file of its own; then every layer reads its
weights, blocking, when its forward pass begins. Peak memory is at least all weights. Which call
and version the paper used is not known; this is the documented one that offloads a loaded model.
No options.
"""

import sys
from typing import TYPE_CHECKING

from baselines.library_program import main
from baselines.options import SystemOptions
from tpi.errors import ResourceError, map_errors
from tpi.program.spec import NodeSpec, own_options

if TYPE_CHECKING:
    from baselines.accelerate.offload import OffloadedModel

_NOTE = "the whole model was loaded before it was offloaded"


class Accelerate2024Options(SystemOptions, frozen=True, kw_only=True):
    """None."""


def load(spec: NodeSpec) -> "OffloadedModel":
    """Load the spec's folder, then write its weights to the working directory."""
    own_options(spec, Accelerate2024Options)
    # Only here: a wrong spec is refused before the library's seconds of import.
    from accelerate import disk_offload

    from baselines.accelerate.offload import OffloadedModel, offload_folder
    from baselines.transformers.loading import load_model_twice

    model = load_model_twice(spec.model_dir, spec.compute.dtype, spec.threads, mmap=True)
    with offload_folder() as folder:
        with map_errors({OSError: ResourceError}, f"cannot offload to {folder.name}"):
            model = disk_offload(model, folder.name)
        return OffloadedModel(model, folder, _NOTE)


if __name__ == "__main__":
    sys.exit(main(load))
