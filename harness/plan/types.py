"""What will be done, as values: `Plan`, and a `SystemPlan` for each system of it.

`plan.py` makes them. A plan is the same whether processes or the simulator execute it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from baselines.base import AnySystem
from baselines.cost_inputs import Prediction
from baselines.options import SystemOptions
from baselines.registry import REFERENCE
from baselines.weight_formats import HF, WeightFormat, format_num_bytes, reference_format
from harness.config.config import Config
from harness.plan.dilation import Dilation
from results.records.notes import Cut
from testbed.host.rates import Host
from testbed.limits.limits import DeviceLimits, DevicePlan
from testbed.sim.calibration import Calibration
from tpi.model_config import ModelConfig
from tpi.units import counted

_CHECK_LAYERS = 2
_SWAPS_FROM = 0.95  # of a device's memory: a prediction is not exact


@dataclass(frozen=True, slots=True)
class SystemPlan:
    """One system: what it needs, or why it is not run.

    Attributes:
        devices: Those that it uses, by rank.
        form: The weights that it reads.
        check: How its tokens are compared with the reference's: `exact` or `bounded`.
    """

    system: AnySystem
    options: SystemOptions
    devices: tuple[DevicePlan, ...]
    form: WeightFormat
    cost: Prediction
    check: str
    refusal: str | None = None

    @property
    def name(self) -> str:
        """The system's name."""
        return self.system.name

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return len(self.devices)

    @property
    def devices_text(self) -> str:
        """`1 device`, `8 devices`."""
        return counted(self.world_size, "device")

    @property
    def limits(self) -> tuple[DeviceLimits, ...]:
        """The limits of its devices."""
        return tuple(device.limits for device in self.devices)

    @property
    def threads(self) -> tuple[int, ...]:
        """Compute threads on each device: the system's own option, or the device's."""
        return tuple(self.options.own_threads or limits.threads for limits in self.limits)

    @property
    def swap_need(self) -> int:
        """Bytes of swap that it is predicted to fill on all its devices."""
        return sum(
            min(max(0, peak - int(_SWAPS_FROM * limits.memory)), limits.swap)
            for limits, peak in self._pairs
            if limits.memory is not None
        )

    @property
    def _pairs(self) -> list[tuple[DeviceLimits, int]]:
        return list(zip(self.limits, self.cost.peak_bytes, strict=True))

    @property
    def is_short(self) -> bool:
        """Whether it is predicted to need more than one of its devices has."""
        return any(
            limits.memory is not None and peak > limits.memory + limits.swap
            for limits, peak in self._pairs
        )

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
        devices: All devices; every system uses the first so many of them.
        unavailable: Systems that came by `all` and cannot run, and why.
        check: What tokens are checked against: `reference`, `two_layer` (a reference of the same
            shape cut to two layers) or `none`.
        check_reason: Why it is not a check against the whole model; empty if it is.
        host: This host, or the calibrated one.
        calibration: What simulated costs come from; None where processes run.
        dilation: How many times slower than the devices everything runs, and why.
        predicted_s: An estimate for all of it, preparation included.
        cuts: What was cut to fit `max_minutes`.
    """

    config: Config
    model: ModelConfig
    storage: str
    synthetic: bool
    distinct_layers: int
    prompt_ids: tuple[int, ...]
    warmup_tokens: int
    devices: tuple[DevicePlan, ...]
    systems: tuple[SystemPlan, ...]
    unavailable: Mapping[str, str]
    check: str
    check_reason: str
    host: Host = field(compare=False)
    calibration: Calibration | None = None
    dilation: Dilation = field(default_factory=lambda: Dilation(1.0))
    predicted_s: float = 0.0
    cuts: tuple[Cut, ...] = ()

    @property
    def prompt_tokens(self) -> int:
        """Length of the prompt."""
        return len(self.prompt_ids)

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

    @property
    def is_simulated(self) -> bool:
        """Whether nothing is started, and the simulator answers."""
        return self.calibration is not None

    @property
    def has_limits(self) -> bool:
        """Whether devices are more than plain processes."""
        return self.is_emulated or self.is_simulated

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
        if self.is_simulated:
            return {}
        forms = [system.form for system in self.runnable]
        if self.check == "reference":
            forms += [reference_format(system.form) for system in self.runnable]
        return {form: self._bytes_of(form) for form in dict.fromkeys(forms)}

    def _bytes_of(self, form: WeightFormat) -> int:
        if form == HF and not self.synthetic:
            return 0  # a folder is its own Hugging Face form
        return format_num_bytes(form, self.model, self.storage, self.distinct_layers)

    def forced(self) -> "Plan":
        """The same plan, to be executed whether or not there are records."""
        return replace(self, config=replace(self.config, force=True))


def reduced_model(model: ModelConfig) -> ModelConfig:
    """The same shape, cut to two layers."""
    return replace(model, num_layers=min(_CHECK_LAYERS, model.num_layers))
