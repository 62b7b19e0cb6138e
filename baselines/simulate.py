"""`simulate`: what a system would do on devices and links that need not exist.

`baselines/tpi/schedule.py`, `galaxy.py`, `pipeline.py` and `library.py` have the systems' own
schedules.
"""

from collections.abc import Callable, Mapping

from baselines.pipeline.schedule import pipeline
from baselines.tpi.simulate import galaxy, tpi, tpi_resident, transformers_window
from baselines.transformers.schedule import accelerate, accelerate_2024, transformers
from testbed.sim.base import SimOutcome, SimRun
from testbed.sim.calibration import Calibration
from tpi.errors import ConfigError

_Simulate = Callable[[SimRun, Calibration], SimOutcome]
SYSTEMS: Mapping[str, _Simulate] = {
    "tpi": tpi,
    "tpi-resident": tpi_resident,
    "transformers-window": transformers_window,
    "galaxy": galaxy,
    "pipeline": pipeline,
    "transformers": transformers,
    "accelerate": accelerate,
    "accelerate-2024": accelerate_2024,
}


def simulate(run: SimRun, calibration: Calibration) -> SimOutcome:
    """Simulate one start of a system, with one warm request.

    Raises:
        ConfigError: A system that is not simulated (the message names those that are), devices
            and links that do not fit each other, or options that the real system would refuse.
        ResourceError: A memory budget that cannot work, as in the real system.
    """
    if run.system not in SYSTEMS:
        raise ConfigError(
            f"testbed=sim: {run.system} is not simulated; choose among {', '.join(SYSTEMS)}"
        )
    _check(run)
    return SYSTEMS[run.system](run, calibration)


def _check(run: SimRun) -> None:
    if not run.devices or len(run.links) != len(run.devices):
        raise ConfigError(
            f"testbed=sim: {len(run.devices)} devices and {len(run.links)} links, expected as many"
        )
    if run.prompt_tokens < 1 or run.new_tokens < 1:
        raise ConfigError(
            f"testbed=sim: {run.prompt_tokens} prompt tokens and {run.new_tokens} new ones, "
            "expected at least 1 each"
        )
    for rank, device in enumerate(run.devices):
        if not device.cores > 0 or (device.disk_read_bps is not None and device.disk_read_bps <= 0):
            raise ConfigError(f"testbed=sim: rank {rank}: cores and disk must be > 0: {device}")
