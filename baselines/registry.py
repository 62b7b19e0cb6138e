"""Every system there is: its options, its program, and what it needs. A table, nothing more.

A system is a program that obeys the contract of `tpi node` (spec in, events out). A new one is a
module in `baselines/`, a page in `conf/systems/`, a dataclass in `options.py`, a cost in
`baselines/cost.py` or `baselines/accelerate/cost.py`, and a row here.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from baselines.options import (
    Accelerate2024Options,
    AccelerateOptions,
    GalaxyOptions,
    LlamacppOptions,
    PipelineOptions,
    ResidentOptions,
    SystemOptions,
    TpiOptions,
    TransformersOptions,
    TransformersTpOptions,
    WindowOptions,
)

REFERENCE = "transformers"  # the system whose float32 tokens all others are compared with


@dataclass(frozen=True, slots=True)
class System:
    """One system.

    Attributes:
        options: Class of its options.
        program: What starts it, after the device's Python; the path of its spec is appended.
        writer: Module that writes the weights it reads.
        packages: Python packages that must be there.
        distributions: What an extra installs them as, whose versions decide its numbers.
        extra: The extra of this project that installs them; empty if they come with it.
        distributed: Whether it takes all devices; else one.
    """

    options: type[SystemOptions]
    program: tuple[str, ...]
    writer: str = "tpi.weights.split"
    packages: tuple[str, ...] = ("torch",)
    extra: str = ""
    distributions: tuple[str, ...] = ()
    distributed: bool = False


def _baseline(module: str) -> tuple[str, ...]:
    return ("-m", f"baselines.{module}")


_NODE = ("-m", "tpi.cli", "node")
_HF_WRITER = "tpi.weights.hf_folder"
_HF = ("torch", "transformers")
SYSTEMS: Mapping[str, System] = {
    "tpi": System(TpiOptions, _NODE, distributed=True),
    "tpi-resident": System(ResidentOptions, _NODE, distributed=True),
    "transformers": System(
        TransformersOptions, _baseline("transformers.program"), writer=_HF_WRITER, packages=_HF
    ),
    "transformers-window": System(WindowOptions, _NODE),
    "transformers-tp": System(
        TransformersTpOptions,
        _baseline("transformers.program_tp"),
        writer=_HF_WRITER,
        packages=_HF,
        distributed=True,
    ),
    "accelerate": System(
        AccelerateOptions,
        _baseline("accelerate.program"),
        writer=_HF_WRITER,
        packages=(*_HF, "accelerate"),
    ),
    "accelerate-2024": System(
        Accelerate2024Options,
        _baseline("accelerate.program_2024"),
        writer=_HF_WRITER,
        packages=(*_HF, "accelerate"),
    ),
    "galaxy": System(GalaxyOptions, _baseline("galaxy.program"), distributed=True),
    "pipeline": System(PipelineOptions, _baseline("pipeline.program"), distributed=True),
    "llamacpp": System(
        LlamacppOptions,
        _baseline("llamacpp.program"),
        writer="baselines.llamacpp.gguf_file",
        packages=("llama_cpp", "gguf"),
        extra="llamacpp",
        distributions=("llama_cpp_python", "gguf"),
    ),
}
