"""The options of llama.cpp."""

from typing import ClassVar

from baselines.options import SystemOptions
from baselines.validators import check_choice, check_flag

_QUANTIZATIONS = ("none", "q8_0", "q4_0")


class LlamacppOptions(SystemOptions, frozen=True, kw_only=True):
    """llama.cpp on one device; without quantization the file is of the compute dtype."""

    told: ClassVar = ("mmap", "quantization")
    about: ClassVar = {
        "quantization": " | ".join(_QUANTIZATIONS),
        "mmap": "whether its file is mapped",
    }
    mmap: bool = True
    quantization: str = "none"

    def __post_init__(self) -> None:
        check_flag("systems.llamacpp.mmap", self.mmap)
        check_choice("systems.llamacpp.quantization", self.quantization, _QUANTIZATIONS)

    def file_type(self, dtype: str) -> str:
        """What the GGUF file holds."""
        return dtype if self.quantization == "none" else self.quantization
