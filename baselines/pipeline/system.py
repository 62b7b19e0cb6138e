"""The pipeline as a system: what its stages need, and what it cannot do."""

from msgspec.structs import replace

from baselines.base import System
from baselines.cost_inputs import MATVEC_BPS, CostInputs, Prediction
from baselines.pipeline.options import PipelineOptions
from baselines.pipeline.stages import problems, stage_peaks
from baselines.weight_formats import WeightFormat
from tpi.model_config import ModelConfig
from tpi.weights.shard import make_shard_plan


class PipelineSystem(System[PipelineOptions]):
    """Layer ranges on devices one after another."""

    def predict(self, inputs: CostInputs, options: PipelineOptions) -> Prediction:
        """One device computes at a time, as long as all together would."""
        compute = options.compute(inputs.dtype, inputs.max_tokens)
        peaks = stage_peaks(
            inputs.model, len(inputs.devices), options.split, inputs.storage, compute
        )
        stored = inputs.stored_bytes
        hop_s = inputs.exchange_s(min(2, len(inputs.devices)), inputs.hidden_bytes)
        pass_s = (len(inputs.devices) - 1) * hop_s
        return Prediction(
            peak_bytes=peaks,
            read_bytes_per_step=0,
            start_s=inputs.start_s(len(inputs.devices)) + stored / inputs.read_bps(),
            prefill_s=inputs.prefill_s(inputs.cores()) + pass_s,
            step_s=stored / (MATVEC_BPS * inputs.cores()) + pass_s,
        )

    def problems(
        self, model: ModelConfig, devices: int, _dtype: str, options: PipelineOptions
    ) -> list[str]:
        """More devices than layers, or shares that are not numbers > 0, one a device."""
        return problems(model, devices, options.split)

    def weight_format(
        self, model: ModelConfig, _devices: int, _dtype: str, _options: PipelineOptions
    ) -> WeightFormat:
        """The shards of one device: each device reads its own layers, whole."""
        return WeightFormat("shards", make_shard_plan(model, 1))

    def reduced(
        self, options: PipelineOptions, world_size: int, num_layers: int
    ) -> tuple[PipelineOptions, int]:
        """No device can be without a layer."""
        return replace(options, shares=None), min(world_size, num_layers)


SYSTEMS = (
    PipelineSystem(
        "pipeline",
        PipelineOptions,
        ("-m", "baselines.pipeline.program"),
        "baselines.pipeline.schedule:simulate",
        distributed=True,
        order=41,
    ),
)
