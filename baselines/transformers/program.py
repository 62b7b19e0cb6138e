"""Plain Transformers on one device: `python -m baselines.transformers.program SPEC`.

`from_pretrained` in the dtype of the arithmetic, then `generate`, nothing tuned and nothing added,
as its documentation says. `load_s` covers importing and loading. Options:

    low_cpu_mem_usage   true: weights go straight from the file to their place (all that
                        Transformers 5 does). false: the paper's form and the default of its time:
                        a whole model is built, the whole state dict is read beside it and copied.
    mmap                true: files are mapped, and weights stored in the dtype of the arithmetic
                        stay views of them. false (`disable_mmap`): files are read as bytes and
                        copied, which takes twice the weights while it lasts.
"""

import sys
from typing import TYPE_CHECKING, ClassVar

from baselines.library_program import main
from baselines.options import SystemOptions
from baselines.validators import check_choice, check_count, check_flag
from tpi.options import COMPUTE_DTYPES
from tpi.program.spec import NodeSpec, own_options

if TYPE_CHECKING:
    from baselines.transformers.loading import Generator


class TransformersOptions(SystemOptions, frozen=True, kw_only=True):
    """dtype and threads are the run's unless given for it alone; see the module's docstring."""

    told: ClassVar = ("low_cpu_mem_usage", "mmap")
    about: ClassVar = {
        "dtype": "of this system alone, as dtype",
        "threads": "of this system alone, as threads",
        "low_cpu_mem_usage": "false builds the model before weights are read",
        "mmap": "whether its checkpoint is mapped",
    }
    dtype: str | None = None
    threads: int | None = None
    low_cpu_mem_usage: bool = True
    mmap: bool = True

    def __post_init__(self) -> None:
        if self.dtype is not None:
            check_choice("systems.transformers.dtype", self.dtype, COMPUTE_DTYPES)
        if self.threads is not None:
            check_count("systems.transformers.threads", self.threads, high=1024)
        check_flag("systems.transformers.low_cpu_mem_usage", self.low_cpu_mem_usage)
        check_flag("systems.transformers.mmap", self.mmap)

    @property
    def own_threads(self) -> int | None:
        """Threads of this system alone."""
        return self.threads


def load(spec: NodeSpec) -> "Generator":
    """Load the spec's folder as its options say."""
    options = own_options(spec, TransformersOptions)
    # Only here: a wrong spec is refused before the library's seconds of import.
    from baselines.transformers.loading import Generator, load_model, load_model_twice

    if options.low_cpu_mem_usage:
        # Null, not false, is the library's default: it turns mapping off where that is harmful.
        disable_mmap = None if options.mmap else True
        model = load_model(
            spec.model_dir, spec.compute.dtype, spec.threads, disable_mmap=disable_mmap
        )
    else:
        model = load_model_twice(
            spec.model_dir, spec.compute.dtype, spec.threads, mmap=options.mmap
        )
    return Generator(model)


if __name__ == "__main__":
    sys.exit(main(load))
