"""Fidelity of a container's limits: CPU, disk, memory beside what was asked for; needs Docker.

All devices burn at once and fill 85 % of the host together, which is the most that a dilation gives
them. Another load on the machine shows; each figure is the median of several tries.
"""

import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from testbed.limits.limits import DeviceLimits
from testbed.verify.probe_agents import probe_agents
from tests.testbed.beds import make_bed

pytestmark = [pytest.mark.bench, pytest.mark.docker, pytest.mark.timeout(300)]

MIB = 1 << 20
TRIES = 5
BURN_S = 4.0
FILE_BYTES = 256 * MIB


def show(what: str, expected: float, measured: list[float], band: float) -> float:
    """Print one line; gives the largest deviation."""
    errors = [value / expected - 1 for value in measured]
    worst = max(errors, key=abs)
    sys.stdout.write(
        f"  {what}: expected {expected:g}, {min(errors):+.2%} to {max(errors):+.2%}"
        f" (band {band:.0%})\n"
    )
    return abs(worst)


@pytest.mark.parametrize("num_devices", [4, 8])
def test_share_of_the_cpu_is_what_was_asked_for(tmp_path, num_devices):
    share = 0.85 * len(os.sched_getaffinity(0)) / num_devices
    with (
        make_bed(tmp_path, DeviceLimits(cpus=share), num_devices) as bed,
        probe_agents(bed.up(num_devices)) as agents,
    ):
        tries = []
        for _ in range(TRIES):
            at_ns = time.monotonic_ns() + 50_000_000
            burn = {"do": "burn", "at_ns": at_ns, "seconds": BURN_S, "processes": 1}
            answers = agents.ask(dict.fromkeys(range(num_devices), burn), BURN_S + 20)
            tries.append([answer.cpus or 0.0 for answer in answers])
    medians = [statistics.median(of_one) for of_one in zip(*tries, strict=True)]
    assert show(f"CPU, {num_devices} devices", share, medians, 0.03) <= 0.03


@pytest.mark.parametrize("rate_mib", [16, 50, 200])
def test_disk_is_as_fast_as_was_asked_for(tmp_path, rate_mib):
    model = tmp_path / "model"
    model.mkdir()
    write_file(model / "block")
    limits = DeviceLimits(read_bps=rate_mib * MIB)
    with (
        make_bed(tmp_path / "work", limits, 1, mounts=[model]) as bed,
        probe_agents(devices := bed.up(1)) as agents,
    ):
        command = {
            "do": "disk", "paths": [devices[0].path_of(model / "block")], "warm_s": 0.5,
            "seconds": 3.0, "request_bytes": MIB,
        }  # fmt: skip
        rates = [agents.ask({0: command}, 30)[0].read_bps or 0.0 for _ in range(TRIES)]
    measured = [statistics.median(rates)]
    assert show("disk, bytes/s", rate_mib * MIB, measured, 0.05) <= 0.05


def test_memory_is_exactly_what_was_asked_for(tmp_path):
    with make_bed(tmp_path, DeviceLimits(memory=96 * MIB), 1) as bed:
        limits: Any = bed.up(1)[0].facts()["limits"]
    assert limits["memory_bytes"] == 96 * MIB


def write_file(path: Path) -> None:
    """Durable, so that reading it reaches the disk."""
    with path.open("wb") as file:
        for _ in range(FILE_BYTES // MIB):
            file.write(os.urandom(MIB))
        file.flush()
        os.fsync(file.fileno())
