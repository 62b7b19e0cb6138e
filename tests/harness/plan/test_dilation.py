"""Devices that are too much for a host run slower by one factor, and keep their proportions."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.config.profiles import DeviceProfile
from harness.plan.dilation import USABLE, choose_dilation, host_cores, limits_of
from tests.harness import micro
from tpi.errors import ConfigError

HOST = replace(micro.HOST, core_gbps=20.0)
KLONET = DeviceProfile(
    "k", cores=8, core_speed=0.5, mem_gbps=30, memory=8 << 30, disk_read_mb_s=500
)


def test_decode_is_worth_the_memory_rate_and_prefill_the_cores():
    assert host_cores(KLONET, HOST, "decode") == pytest.approx(1.5)
    assert host_cores(KLONET, HOST, "prefill") == pytest.approx(4.0)
    assert host_cores(DeviceProfile(cores=2), HOST, "decode") == 2
    assert host_cores(DeviceProfile(mem_gbps=10), HOST, "prefill") is None
    assert host_cores(DeviceProfile(), HOST, "decode") is None


def test_auto_is_the_least_whole_number_that_fits():
    # 8 x 1.5 cores in 1.7, and 4 GB/s in 0.85.
    assert choose_dilation("auto", [KLONET] * 8, HOST).factor == 8
    assert choose_dilation("auto", [KLONET], HOST) == choose_dilation(1, [KLONET], HOST)
    assert choose_dilation("auto", [DeviceProfile()] * 8, HOST).factor == 1


def test_the_disk_can_be_what_does_not_fit():
    slow = replace(HOST, read_bps=1e8)
    found = choose_dilation("auto", [KLONET], slow)
    assert found.factor == 6
    assert "from disk" in found.reason


def test_too_little_is_refused_or_marked():
    with pytest.raises(ConfigError, match=r"got 2, but 8 devices are worth 12 cores.*dilation=8"):
        choose_dilation(2, [KLONET] * 8, HOST)
    forced = choose_dilation(2, [KLONET] * 8, HOST, oversubscribe=True)
    assert forced.factor == 2
    assert "12 cores" in forced.oversubscribed
    assert not choose_dilation(16, [KLONET] * 8, HOST).oversubscribed


def test_limits_are_divided_and_memory_is_not():
    limits = limits_of(KLONET, 8, HOST)
    assert limits.cpus == pytest.approx(1.5 / 8)
    assert limits.read_bps == 62_500_000
    assert limits.write_bps is None
    assert (limits.memory, limits.swap, limits.threads) == (8 << 30, 0, 1)


def test_threads_are_as_many_as_the_quota_keeps_busy():
    assert limits_of(KLONET, 1, HOST).threads == 2
    assert limits_of(DeviceProfile(cores=1, threads=3), 1, HOST).threads == 3
    assert limits_of(DeviceProfile(), 1, HOST).threads == 1
    # A device that is worth more than the host is not limited.
    assert limits_of(DeviceProfile(cores=4), 1, HOST).cpus is None


@given(
    cores=st.floats(0.5, 64),
    speed=st.floats(0.1, 4),
    gbps=st.floats(1, 500),
    count=st.integers(1, 32),
    disk=st.floats(10, 5000),
)
def test_auto_always_fits_and_one_less_never_does(cores, speed, gbps, count, disk):
    profile = DeviceProfile("x", cores=cores, core_speed=speed, mem_gbps=gbps, disk_read_mb_s=disk)
    factor = choose_dilation("auto", [profile] * count, HOST).factor
    limits = limits_of(profile, factor, HOST)
    assert count * (limits.cpus or 0) <= USABLE * HOST.cores * 1.0001
    assert count * (limits.read_bps or 0) <= USABLE * HOST.read_bps * 1.0001 + count
    if factor > 1:
        with pytest.raises(ConfigError):
            choose_dilation(factor - 1, [profile] * count, HOST)
