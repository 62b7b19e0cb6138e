"""What will be done, as values: `Plan`, and a `SystemPlan` for each system of it.

`plan.py` makes them from a configuration; everything that starts, writes or says something reads
them. Read `Plan` first.
"""

from dataclasses import dataclass, replace

from harness.config import Config
from harness.forms import HF, Form, form_bytes, reference_form
from harness.options import SystemOptions
from harness.setting import Cost
from harness.systems import REFERENCE
from tpi.config import ModelConfig

_CHECK_LAYERS = 2


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
    form: Form
    cost: Cost
    check: str
    refusal: str | None = None


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
    def forms(self) -> dict[Form, int]:
        """The forms of the weights that will be read, and the bytes that each is to take."""
        forms = [system.form for system in self.runnable]
        if self.check == "reference":
            forms += [reference_form(system.form) for system in self.runnable]
        return {form: self._bytes_of(form) for form in dict.fromkeys(forms)}

    def _bytes_of(self, form: Form) -> int:
        if form == HF and not self.synthetic:
            return 0  # a folder is its own Hugging Face form
        return form_bytes(form, self.model, self.storage, self.distinct_layers)


def two_layer_model(model: ModelConfig) -> ModelConfig:
    """The same shape, cut to two layers."""
    return replace(model, num_layers=min(_CHECK_LAYERS, model.num_layers))
