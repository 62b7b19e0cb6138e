"""Plain Transformers on one device: `python -m baselines.transformers.program SPEC`.

`from_pretrained` in the dtype of the arithmetic, then `generate`, nothing tuned and nothing added:
what a person gets who follows its documentation. `load_s` covers importing and loading. Options:

    low_cpu_mem_usage   true: weights go straight from the file to their place (all that
                        Transformers 5 does). false: the paper's form and the default of its time:
                        a whole model is built, the whole state dict is read beside it and copied.
    mmap                true: files are mapped, and weights stored in the dtype of the arithmetic
                        stay views of them. false (`disable_mmap`): files are read as bytes and
                        copied, which takes twice the weights while it lasts.
"""

import sys
from typing import TYPE_CHECKING

from msgspec import Struct

from baselines.library_program import main
from tpi.decode import convert
from tpi.errors import ConfigError
from tpi.program.spec import NodeSpec

if TYPE_CHECKING:
    from baselines.transformers.loading import Generator


class Options(Struct, frozen=True, forbid_unknown_fields=True):
    """See the module's docstring."""

    low_cpu_mem_usage: bool = True
    mmap: bool = True


def load(spec: NodeSpec) -> "Generator":
    """Load the spec's folder as its options say."""
    options = convert(spec.options, Options, "spec options", ConfigError)
    # Only here: a wrong spec is refused before the library's seconds of import.
    from baselines.transformers.loading import Generator, load_model, load_model_twice

    if options.low_cpu_mem_usage:
        # Null, not false, is the library's default: it turns mapping off where that is harmful.
        disable_mmap = None if options.mmap else True
        model = load_model(spec.model_dir, spec.dtype, spec.threads, disable_mmap=disable_mmap)
    else:
        model = load_model_twice(spec.model_dir, spec.dtype, spec.threads, mmap=options.mmap)
    return Generator(model)


if __name__ == "__main__":
    sys.exit(main(load))
