"""From a configuration to what the simulator is asked: pure, and free of this host.

A simulated device is worth so many cores of the calibrated host, found as for an emulated one but
with the calibration's memory rate, so that the answer is the same on every machine. Nothing is
refused for memory, disk or time, which are the devices' own, but for a memory budget that cannot
work anywhere. Read `make_sim_plan` first.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from baselines.registry import SYSTEMS
from harness.config.config import Config
from harness.config.profiles import REFERENCE_CALIBRATION, DeviceProfile
from harness.plan.dilation import HostRates, host_cores
from harness.plan.plan import check_fits_model, is_synthetic
from testbed.limits.limits import DeviceLimits
from testbed.sim.base import SimDevice, SimRun
from testbed.sim.calibration import Calibration, load_calibration
from testbed.sim.rank_plans import NodeOptions, plan_ranks
from tpi.errors import ConfigError, ResourceError, map_errors
from tpi.model_config import ModelConfig


@dataclass(frozen=True, slots=True)
class SimPlan:
    """What will be simulated, and from which costs; `runs` in the order of the systems.

    Attributes:
        refused: Systems that came by `all` and cannot be simulated as asked, and why.
    """

    config: Config
    model: ModelConfig
    calibration: Calibration
    runs: tuple[SimRun, ...]
    refused: Mapping[str, str] = field(default_factory=dict)

    @property
    def storage(self) -> str:
        """Dtype of the stored weights."""
        return self.runs[0].storage

    @property
    def prompt_tokens(self) -> int:
        """Length of the prompt."""
        return self.runs[0].prompt_tokens

    @property
    def calibration_name(self) -> str:
        """As it was asked for: `reference`, or a file."""
        return self.config.testbed.calibration

    def forced(self) -> "SimPlan":
        """The same plan, to be simulated whether or not there is a record."""
        return replace(self, config=replace(self.config, force=True))


def calibration_of(config: Config) -> Calibration:
    """The calibration that a configuration names.

    Raises:
        ConfigError: It cannot be read, or is none.
    """
    name = config.testbed.calibration
    if name != REFERENCE_CALIBRATION and not Path(name).exists():
        raise ConfigError(f"testbed.calibration: {name}: no such file; make calibrate writes one")
    with map_errors({ConfigError: ConfigError}, "testbed.calibration"):
        return load_calibration(None if name == REFERENCE_CALIBRATION else Path(name))


def make_sim_plan(
    config: Config,
    model: ModelConfig,
    prompt_tokens: int,
    calibration: Calibration,
    *,
    is_all: bool = False,
) -> SimPlan:
    """Plan the simulation of every system of a configuration.

    Args:
        config: What is asked.
        model: Its model.
        prompt_tokens: Length of the prompt.
        calibration: What everything costs.
        is_all: Systems came by `all`: one whose memory budget cannot work is left out.

    Raises:
        ConfigError: It cannot be done as asked.
    """
    check_fits_model(config, model, prompt_tokens)
    is_synthetic(config)  # what it refuses of weights is refused here too
    storage = model.dtype if config.weights.dtype == "auto" else config.weights.dtype
    fit = config.testbed.fit
    devices = tuple(_device(profile, calibration, fit) for profile in config.profiles)
    links = tuple(config.links)
    runs = []
    for name, options in config.systems.items():
        count = config.devices if SYSTEMS[name].distributed else 1
        runs.append(
            SimRun(
                system=name,
                options=asdict(options),
                model=model,
                storage=storage,
                dtype=getattr(options, "dtype", None) or config.dtype,
                prompt_tokens=prompt_tokens,
                new_tokens=config.workload.new_tokens,
                devices=devices[:count],
                links=links[:count],
                keep_spans=config.trace,
            )
        )
    refused = {run.system: reason for run in runs if (reason := _refusal(run))}
    if refused and (not is_all or len(refused) == len(runs)):
        raise ConfigError("; ".join(f"{name}: {reason}" for name, reason in refused.items()))
    left = tuple(run for run in runs if run.system not in refused)
    return SimPlan(config, model, calibration, left, refused)


def _refusal(run: SimRun) -> str:
    """Why a system's memory budget cannot work; empty if it can, or has none."""
    if run.options.get("memory_budget") is None:
        return ""
    try:
        plan_ranks(run, NodeOptions.of(run.options))
    except ResourceError as exc:
        return f"memory_budget: {exc}"
    return ""


def limits_of(device: SimDevice) -> DeviceLimits:
    """A simulated device in the words of a record's limits."""
    return DeviceLimits(
        cpus=device.cores,
        memory=device.memory,
        swap=device.swap,
        read_bps=_rounded(device.disk_read_bps),
        write_bps=_rounded(device.disk_write_bps),
    )


def _rounded(rate_bps: float | None) -> int | None:
    return None if rate_bps is None else round(rate_bps)


def _device(profile: DeviceProfile, calibration: Calibration, fit: str) -> SimDevice:
    host = HostRates(cores=1, core_gbps=calibration.core_read_bps / 1e9, read_bps=0.0)
    cores = host_cores(profile, host, fit)
    read_mb_s, write_mb_s = profile.disk_read_mb_s, profile.disk_write_mb_s
    return SimDevice(
        # What nothing limits computes with one thread, as on a real testbed.
        cores=1.0 if cores is None else cores,
        memory=profile.memory,
        swap=profile.swap,
        disk_read_bps=None if read_mb_s is None else read_mb_s * 1e6,
        disk_write_bps=None if write_mb_s is None else write_mb_s * 1e6,
    )
