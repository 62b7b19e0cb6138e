"""The common base of all systems' options: how they are checked, and what they decide.

A system's options are one type, in the words of its page in `conf/systems/`. The harness makes one
from the configuration, and the program decodes its part of them with the same type
(`tpi.program.spec.own_options`). Defaults of computing are those of `tpi.options`.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from msgspec import Struct
from msgspec.structs import asdict, force_setattr

from baselines.validators import check_count, check_shares
from tpi.options import ComputeOptions

DEFAULT = ComputeOptions()


class SystemOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the options of every system; a subclass checks its own in `__post_init__`.

    Attributes:
        fixed: Settings of computing that no option changes.
        told: Options that the program is told beside how it computes.
        shown: Options that the text of a simulated plan names.
        about: A sentence for each option that `--help` lists.
        where: What errors put before the name of an option.
    """

    fixed: ClassVar[Mapping[str, Any]] = {}
    told: ClassVar[tuple[str, ...]] = ()
    shown: ClassVar[tuple[str, ...]] = ()
    about: ClassVar[Mapping[str, str]] = {}
    where: ClassVar[str] = ""

    @property
    def split(self) -> list[float] | None:
        """How unequal the devices' parts of the model are; None where all are alike."""
        return None

    @property
    def own_threads(self) -> int | None:
        """Threads of this system alone; None for those of the device."""
        return None

    def compute(self, dtype: str, max_tokens: int) -> ComputeOptions:
        """How each rank computes; what the system has no option for is as for `tpi`."""
        run: dict[str, Any] = {"dtype": dtype, "max_tokens": max_tokens}
        own = {name: value for name, value in asdict(self).items() if value is not None}
        return ComputeOptions.named_in(run | own, **self.fixed)

    def spec(self) -> dict[str, object]:
        """What the program is told beside how it computes."""
        return {name: getattr(self, name) for name in self.told}

    def _set(self, name: str, value: object) -> None:
        """Replace a user's text by its value; in `__post_init__` only."""
        force_setattr(self, name, value)


class Chunked(SystemOptions, frozen=True, kw_only=True):
    """A long prompt takes several passes."""

    prefill_chunk: int = DEFAULT.prefill_chunk

    def __post_init__(self) -> None:
        check_count(f"{self.where}prefill_chunk", self.prefill_chunk)


class Shared(Chunked, frozen=True, kw_only=True):
    """Devices take unequal parts of the model."""

    shares: list[float] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shares is not None:
            self._set("shares", check_shares("shares", self.shares))

    @property
    def split(self) -> list[float] | None:
        """How unequal the devices' parts of the model are; None where all are alike."""
        return self.shares
