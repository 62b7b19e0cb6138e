"""What the predictions of a configuration start from."""

from baselines.cost_inputs import CostInputs
from harness.config.config import Config
from testbed.host.rates import Host
from testbed.limits.limits import DeviceLimits
from testbed.links.link import LinkSpec
from tpi.model_config import ModelConfig


def cost_inputs_of(
    config: Config,
    model: ModelConfig,
    storage: str,
    prompt_tokens: int,
    host: Host,
    limits: tuple[DeviceLimits, ...] = (),
    links: tuple[LinkSpec, ...] = (),
) -> CostInputs:
    """What all systems of a configuration have in common."""
    return CostInputs(
        model=model,
        storage=storage,
        dtype=config.dtype,
        threads=limits[0].threads if limits else 1,
        devices=config.devices,
        prompt_tokens=prompt_tokens,
        new_tokens=config.workload.new_tokens,
        host=host,
        limits=limits,
        links=links,
    )
