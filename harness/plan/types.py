"""What will be done, as values: `Plan`, and a `SystemPlan` for each system of it.

`plan.py` makes them from a configuration; everything that starts, writes or says something reads
them. Read `Plan` first.
"""

from dataclasses import dataclass, field, replace

from baselines.cost_inputs import Prediction
from baselines.options import SystemOptions
from baselines.registry import REFERENCE
from baselines.weight_formats import HF, WeightFormat, format_num_bytes, reference_format
from harness.config.config import Config
from harness.plan.dilation import Dilation
from testbed.limits.limits import DeviceLimits
from testbed.links.link import LinkSpec
from tpi.model_config import ModelConfig

_CHECK_LAYERS = 2
_SWAPS_FROM = 0.95  # of a device's memory: what is predicted is not exact


@dataclass(frozen=True, slots=True)
class SystemPlan:
    """One system: what it needs, or why it is not run.

    Attributes:
        form: The weights that it reads.
        check: How its tokens are compared with the reference's: `exact` or `bounded`.
    """

    name: str
    options: SystemOptions
    world_size: int
    form: WeightFormat
    cost: Prediction
    check: str
    refusal: str | None = None

    @property
    def is_copied(self) -> bool:
        """Whether several devices read the same files through the page cache, if they share it."""
        return self.world_size > 1 and self.form.kind != "shards"


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that will be done.

    Attributes:
        config: As it will run, cuts applied.
        storage: Dtype of the stored weights.
        distinct_layers: Layers that are stored, of `model.num_layers`.
        check: What tokens are checked against: `reference`, `two_layer` (the same shape cut to two
            layers stands in for a reference) or `none`.
        check_reason: Why it is not a check against the whole model; empty otherwise.
        limits: What is enforced on each device of this host; empty limits where nothing is.
        links: Each device's link, as it is emulated here.
        dilation: How many times slower than the devices everything runs, and why.
        host_read_bps: What this host's disk was measured to give.
        predicted_s: An estimate for all of it, preparation included.
        cuts: What was cut to fit `max_minutes`, in words.
    """

    config: Config
    model: ModelConfig
    storage: str
    synthetic: bool
    distinct_layers: int
    prompt_tokens: int
    warmup_tokens: int
    systems: tuple[SystemPlan, ...]
    memory_limit: int
    check: str
    check_reason: str
    limits: tuple[DeviceLimits, ...] = ()
    links: tuple[LinkSpec, ...] = ()
    dilation: Dilation = field(default_factory=lambda: Dilation(1.0))
    host_read_bps: float = 0.0
    predicted_s: float = 0.0
    cuts: tuple[str, ...] = ()

    @property
    def new_tokens(self) -> int:
        """Tokens of a measured request."""
        return self.config.workload.new_tokens

    @property
    def max_tokens(self) -> int:
        """Prompt and answer of the longest request."""
        return self.prompt_tokens + max(self.new_tokens, self.warmup_tokens)

    @property
    def is_emulated(self) -> bool:
        """Whether devices are containers with limits and links, and not plain processes."""
        return self.config.testbed.backend == "docker"

    def threads_of(self, system: SystemPlan) -> tuple[int, ...]:
        """Compute threads of a system on each of its devices: its own option, or the device's."""
        own: int | None = getattr(system.options, "threads", None)
        limits = self.limits[: system.world_size]
        return tuple(own or (limit.threads) for limit in limits)

    def swap_need(self, system: SystemPlan) -> int:
        """Bytes of swap that a system is predicted to fill on all its devices."""
        pairs = zip(self.limits, system.cost.peak_bytes, strict=False)
        return sum(
            min(max(0, peak - int(_SWAPS_FROM * limits.memory)), limits.swap)
            for limits, peak in pairs
            if limits.memory is not None
        )

    @property
    def runnable(self) -> tuple[SystemPlan, ...]:
        """The systems that will be started."""
        return tuple(system for system in self.systems if system.refusal is None)

    @property
    def checked_first(self) -> tuple[SystemPlan, ...]:
        """The systems that must prove themselves on two layers."""
        if self.check != "two_layer":
            return ()
        return tuple(system for system in self.runnable if system.name != REFERENCE)

    @property
    def forms(self) -> dict[WeightFormat, int]:
        """The forms of the weights that will be read, and the bytes that each is to take."""
        forms = [system.form for system in self.runnable]
        if self.check == "reference":
            forms += [reference_format(system.form) for system in self.runnable]
        return {form: self._bytes_of(form) for form in dict.fromkeys(forms)}

    def _bytes_of(self, form: WeightFormat) -> int:
        if form == HF and not self.synthetic:
            return 0  # a folder is its own Hugging Face form
        return format_num_bytes(form, self.model, self.storage, self.distinct_layers)


def reduced_model(model: ModelConfig) -> ModelConfig:
    """The same shape, cut to two layers."""
    return replace(model, num_layers=min(_CHECK_LAYERS, model.num_layers))
