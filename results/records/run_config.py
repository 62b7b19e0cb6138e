"""The resolved configuration of a run, as its record keeps it: one type per axis.

`harness/config/config.py` has what a user may ask for; these types say what was run. None, or an
empty name, is what a record does not say.
"""

from collections.abc import Mapping

import msgspec
from msgspec import UNSET, Struct, UnsetType

from results.records.numbers import Amount, Count

# An option of a system; which ones there are is the system's own matter.
Option = bool | int | float | str | None | tuple[float, ...]


class RunModel(Struct, frozen=True, forbid_unknown_fields=True):
    """A preset by name, or a folder."""

    name: str = ""
    path: str | None = None


class RunWeights(Struct, frozen=True, forbid_unknown_fields=True):
    """Where the weights come from; `dtype` auto is the checkpoint's own."""

    source: str = "auto"
    dir: str = ""
    seed: int = 0
    dtype: str = "auto"
    distinct_layers: int | str = "auto"
    max_bytes: Count | None = None


class RunWorkload(Struct, frozen=True, forbid_unknown_fields=True):
    """What is asked of the model."""

    prompt: str | None = None
    prompt_file: str | None = None
    prompt_tokens: Count | None = None
    seed: int = 0
    new_tokens: Count | None = None


class RunDevice(Struct, frozen=True, forbid_unknown_fields=True):
    """A device's profile, undilated; None is "not limited"."""

    name: str = ""
    cores: Amount | None = None
    core_speed: Amount = 1.0
    mem_gbps: Amount | None = None
    memory: Count | None = None
    swap: Count = 0
    disk_read_mb_s: Amount | None = None
    disk_write_mb_s: Amount | None = None
    threads: Count | None = None


class RunLinkFault(Struct, frozen=True, forbid_unknown_fields=True):
    """Something that was to happen to one device's link."""

    device: Count
    kind: str
    value: float = 1.0
    at_s: Amount = 0.0
    for_s: Amount | None = None


class RunLink(Struct, frozen=True, forbid_unknown_fields=True):
    """A device's link to the core, undilated."""

    name: str = ""
    delay_ms: Amount = 0.0
    rate_mbps: Amount | None = None
    loss_frac: Amount = 0.0
    queue_kib: Count = 0
    backend: str = "auto"
    faults: tuple[RunLinkFault, ...] = ()


class LinkDifference(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """In what the link of one rank differs from the others."""

    name: str | UnsetType = UNSET
    delay_ms: Amount | UnsetType = UNSET
    rate_mbps: Amount | UnsetType | None = UNSET
    loss_frac: Amount | UnsetType = UNSET
    queue_kib: Count | UnsetType = UNSET
    backend: str | UnsetType = UNSET


class RunTestbed(Struct, frozen=True, forbid_unknown_fields=True):
    """What made the devices; `roster` and `links` by `r0`, `r1`, ... where they differ."""

    name: str = ""
    backend: str = ""
    time_scale: Amount = 1.0
    dilation: Amount | str = "auto"
    oversubscribe: bool = False
    fit: str = "decode"
    make_swap: bool = False
    calibration: str = ""
    roster: Mapping[str, RunDevice] = msgspec.field(default_factory=dict)
    links: Mapping[str, LinkDifference] = msgspec.field(default_factory=dict)

    def profile_names(self, count: int) -> list[str]:
        """Names of the first profiles of the roster, each once; none where all are one."""
        ranks = range(min(count, len(self.roster)))
        found = (self.roster.get(f"r{rank}") for rank in ranks)
        return list(dict.fromkeys(profile.name for profile in found if profile is not None))


class RunConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that a run was configured with, and what the plan made of it."""

    model: RunModel = RunModel()
    weights: RunWeights = RunWeights()
    workload: RunWorkload = RunWorkload()
    device: RunDevice = RunDevice()
    link: RunLink = RunLink()
    testbed: RunTestbed = RunTestbed()
    options: Mapping[str, Option] = msgspec.field(default_factory=dict)  # of the system that ran
    devices: Count | None = None  # a system may use fewer
    dtype: str | None = None
    repeats: Count | None = None
    max_minutes: Amount | None = None
    results_dir: str | None = None
    force: bool = False
    trace: bool = False
    allow_concurrent: bool = False
    prompt_ids: tuple[Count, ...] = ()  # of a measured run; a simulated one has `prompt_tokens`
    prompt_tokens: Count | None = None
    warmup_tokens: Count | None = None
    predicted_peak_bytes: tuple[Count, ...] = ()  # of each device that the system uses
    predicted_step_s: Amount | None = None

    @property
    def shares(self) -> tuple[float, ...] | None:
        """How much of the model each device was asked to take; None where that is even."""
        shares = self.options.get("shares")
        return shares if isinstance(shares, tuple) and any(shares) else None

    @property
    def window(self) -> int | None:
        """Blocks in memory at once; None where the system has no fixed number of them."""
        window = self.options.get("window")
        return window if isinstance(window, int) else None

    def setting(self, system: str, key: str) -> object:
        """What stands under a dotted key, or under an option's name; None where nothing does."""
        name, _, rest = key.partition(".")
        if name == "systems":
            owner, _, option = rest.partition(".")
            return self.options.get(option) if owner == system else None
        found: object = self
        for part in key.split("."):
            found = getattr(found, part, None)
        return self.options.get(key) if found is None else found
