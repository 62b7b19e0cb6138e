"""Calibrations, devices and runs that the tests of the simulator share."""

from dataclasses import replace
from typing import Any

from testbed.links.link import LinkSpec
from testbed.sim.base import SimDevice, SimRun
from testbed.sim.calibration import Calibration, load_calibration
from tpi.model_config import ModelConfig, load_preset

_ENDLESS = 1e18  # the most that a calibration may say


def free_calibration(**changes) -> Calibration:
    """Nothing takes any time but what `changes` says."""
    real = load_calibration()
    zero: dict[str, Any] = {
        name: 0.0 for name in Calibration.__dataclass_fields__
        if name.endswith("_s")
    }  # fmt: skip
    endless: dict[str, Any] = {
        name: _ENDLESS for name in Calibration.__dataclass_fields__
        if name.endswith("_bps") and name != "cast_bps"
    }  # fmt: skip
    free = replace(
        real,
        products=dict.fromkeys(real.products, ((1, _ENDLESS),)),
        linear=dict.fromkeys(real.linear, ((1, _ENDLESS),)),
        attend=dict.fromkeys(real.attend, ((1, _ENDLESS),)),
        cast_bps=dict.fromkeys(real.cast_bps, _ENDLESS),
        **zero,
        **endless,
    )
    return replace(free, **changes)


def tiny(**changes) -> ModelConfig:
    return replace(load_preset("tiny"), **changes)


def make_run(system: str = "tpi", **changes) -> SimRun:
    size = changes.pop("size", 4)
    device = changes.pop("device", SimDevice(1.0, disk_read_bps=1e9))
    link = changes.pop("link", LinkSpec(0.001, 100e6))
    values = {
        "system": system, "options": {}, "model": tiny(), "storage": "float32",
        "dtype": "float32", "prompt_tokens": 8, "new_tokens": 4,
        "devices": (device,) * size, "links": (link,) * size,
    }  # fmt: skip
    return SimRun(**{**values, **changes})
